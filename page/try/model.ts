/** What `undertow export --to web` says of a model, as export/web.py writes it. */

/** One evaluation, [sigma, timestep, input, skip, output]: the network receives `input · x` at `timestep`, and x0 is
 * `skip · x + output · prediction`. */
export type Level = [number, number, number, number, number];

/** The levels of a number of steps. start: the factor of noise at the first. */
export interface Grid {
  start: number;
  levels: Level[];
}

export interface TokenizerFile {
  ids: Record<string, number>;
  merges: [string, string][];
  bos: number;
  eos: number;
  pad: number;
  unknown: number;
}

export interface Model {
  name: string;
  version: string;
  /** Channels, height and width of the latents. */
  latents: [number, number, number];
  /** Width and height of a picture. */
  size: [number, number];
  positions: number;
  tokenizer: TokenizerFile;
  /** By the name that undertow calls them: which algorithm walks along which of `grids`. */
  samplers: Record<string, { algorithm: string; table: number }>;
  /** Tables of grids, by number of steps, from 1 on. */
  grids: Grid[][];
  steps: number;
  guidance: number;
  examples: string[];
  words: string[];
  /** Names by emoji. */
  characters: Record<string, string>;
}
