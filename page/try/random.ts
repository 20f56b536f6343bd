/** Standard normal noise of a seed, as undertow draws it (sampling/generators.py, sampling/noise.py), which is PyTorch's on
 * a CPU: the Mersenne Twister (Matsumoto and Nishimura 1998), 24 bits of each word, and Box and Muller's transform in
 * blocks of sixteen. */

const WORDS = 624;
const SHIFT = 397;
const LOW_BITS = 32n;

export class MersenneTwister {
  private readonly words = new Uint32Array(WORDS);
  private next = WORDS;

  /** A stream for a seed from 0 to 2^64 - 1. Above 2^32 its words are filled from both halves. */
  constructor(seed: bigint) {
    if (seed >> LOW_BITS === 0n) this.fill(Number(seed));
    else this.fillFrom([Number(seed & 0xffffffffn), Number(seed >> LOW_BITS)]);
  }

  /** The next 32 bits. */
  word(): number {
    if (this.next === WORDS) this.twist();
    let y = this.words[this.next++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private fill(seed: number): void {
    this.words[0] = seed;
    for (let i = 1; i < WORDS; i++) {
      const last = this.words[i - 1]!;
      this.words[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i;
    }
  }

  /** The authors' `init_by_array`. */
  private fillFrom(key: number[]): void {
    this.fill(19650218);
    const words = this.words;
    let i = 1;
    const mixed = (factor: number): number => {
      const last = words[i - 1]!;
      return words[i]! ^ Math.imul(factor, last ^ (last >>> 30));
    };
    const advance = (): void => {
      if (++i < WORDS) return;
      words[0] = words[WORDS - 1]!;
      i = 1;
    };
    for (let step = 0; step < WORDS; step++) {
      const place = step % key.length;
      words[i] = mixed(1664525) + key[place]! + place;
      advance();
    }
    for (let step = 0; step < WORDS - 1; step++) {
      words[i] = mixed(1566083941) - i;
      advance();
    }
    words[0] = 0x80000000;
  }

  private twist(): void {
    const words = this.words;
    for (let i = 0; i < WORDS; i++) {
      const y = (words[i]! & 0x80000000) | (words[(i + 1) % WORDS]! & 0x7fffffff);
      words[i] = words[(i + SHIFT) % WORDS]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}

const BLOCK = 16;

/** The noise of one picture: what is drawn first is where it starts, what follows is for samplers that draw more. */
export class Noise {
  private readonly stream: MersenneTwister;

  constructor(seed: bigint) {
    this.stream = new MersenneTwister(seed);
  }

  /** `count` numbers, at least sixteen: PyTorch draws fewer in another way. */
  draw(count: number): Float32Array {
    if (count < BLOCK) throw new RangeError(`${count} numbers of noise; at least ${BLOCK} are drawn at once`);
    const found = new Float32Array(count);
    this.uniform(found);
    for (let start = 0; start + BLOCK <= count; start += BLOCK) transform(found.subarray(start, start + BLOCK));
    if (count % BLOCK) {
      const last = found.subarray(count - BLOCK);
      this.uniform(last);
      transform(last);
    }
    return found;
  }

  private uniform(numbers: Float32Array): void {
    for (let i = 0; i < numbers.length; i++) numbers[i] = (this.stream.word() & 0xffffff) / 2 ** 24;
  }
}

/** Uniform numbers of a block to normal ones. */
function transform(block: Float32Array): void {
  const half = BLOCK / 2;
  for (let i = 0; i < half; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - block[i]!));
    const angle = 2 * Math.PI * block[i + half]!;
    block[i] = radius * Math.cos(angle);
    block[i + half] = radius * Math.sin(angle);
  }
}
