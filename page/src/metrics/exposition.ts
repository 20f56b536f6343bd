/** The service's metrics, as Prometheus reads them: samples with labels. */

export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

export class Samples {
  constructor(private readonly all: Sample[]) {}

  static parse(text: string): Samples {
    const found: Sample[] = [];
    for (const line of text.split("\n")) {
      const match = line.startsWith("#") ? null : LINE.exec(line);
      if (!match) continue;
      const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map((one) => [one[1]!, one[2]!]));
      found.push({ name: match[1]!.replace(/^undertow_/, ""), labels, value: Number(match[3]) });
    }
    return new Samples(found);
  }

  named(name: string): Sample[] {
    return this.all.filter((one) => one.name === name);
  }

  sum(name: string): number {
    return this.named(name).reduce((sum, one) => sum + one.value, 0);
  }

  /** Mean of a histogram, or null where nothing was observed. */
  mean(name: string): number | null {
    const count = this.sum(`${name}_count`);
    return count > 0 ? this.sum(`${name}_sum`) / count : null;
  }

  /** The bound below which a share of what a histogram saw lies; null where nothing was observed. */
  quantile(name: string, share: number): number | null {
    const bounds = new Map<number, number>();
    for (const one of this.named(`${name}_bucket`)) {
      const bound = one.labels["le"] === "+Inf" ? Infinity : Number(one.labels["le"]);
      bounds.set(bound, (bounds.get(bound) ?? 0) + one.value);
    }
    const sorted = [...bounds].sort(([one], [other]) => one - other);
    const all = sorted.at(-1)?.[1] ?? 0;
    const found = sorted.find(([, count]) => count >= share * all);
    return all > 0 && found ? found[0] : null;
  }
}
