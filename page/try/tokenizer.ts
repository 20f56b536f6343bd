/** CLIP's byte-pair encoding (arXiv:2103.00020, section 2.4), as encoders/tokenizer.py builds it. */

import type { TokenizerFile } from "./model";

const WORD_END = "</w>";
const MARKS = /(<\|startoftext\|>|<\|endoftext\|>)/;
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu;

/** A character for each byte, GPT-2's: printable ones stand for themselves, the others lie behind Latin-1. */
const BYTES: string[] = (() => {
  const printable = (byte: number): boolean =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  let behind = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : behind++));
})();

export class Tokenizer {
  private readonly ids: Map<string, number>;
  private readonly ranks: Map<string, number>;
  private readonly utf8 = new TextEncoder();

  constructor(private readonly file: TokenizerFile) {
    this.ids = new Map(Object.entries(file.ids));
    this.ranks = new Map(file.merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
  }

  /** Ids of a text, without the marks around it. */
  encode(text: string): number[] {
    return text.split(MARKS).flatMap((part, index) => {
      if (index % 2) return [part === "<|startoftext|>" ? this.file.bos : this.file.eos];
      return (normalized(part).match(WORDS) ?? []).flatMap((word) => this.pieces(word).map((piece) => this.id(piece)));
    });
  }

  /** The text between its marks, filled up to `positions`, and what did not fit. */
  chunk(text: string, positions: number): { ids: number[]; cut: string } {
    const ids = this.encode(text);
    const kept = ids.slice(0, positions - 2);
    const marked = [this.file.bos, ...kept, this.file.eos];
    const padding = Array.from({ length: positions - marked.length }, () => this.file.pad);
    return { ids: [...marked, ...padding], cut: this.decode(ids.slice(kept.length)) };
  }

  decode(ids: number[]): string {
    const tokens = new Map(Array.from(this.ids, ([token, id]) => [id, token]));
    return ids.map((id) => (tokens.get(id) ?? "").replace(WORD_END, " ")).join("").trim();
  }

  private id(piece: string): number {
    return this.ids.get(piece) ?? this.file.unknown;
  }

  /** A word as the fewest tokens that its merges, the earliest first, make of its bytes. */
  private pieces(word: string): string[] {
    const parts = Array.from(this.utf8.encode(word), (byte) => BYTES[byte]!);
    parts[parts.length - 1] += WORD_END;
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts;
      parts.splice(at, 2, parts[at]! + parts[at + 1]!);
    }
  }
}

/** NFC, spaces as one, lower case one character at a time: a Greek sigma never becomes final. */
function normalized(text: string): string {
  return Array.from(text.normalize("NFC").replace(/\s+/g, " "), (character) => character.toLowerCase()).join("");
}
