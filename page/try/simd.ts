/** The smallest module with a vector instruction: (func (result v128) i32.const 0 i8x16.splat). */
const MODULE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
]);

/** What this browser lacks, in words; nothing where it can draw. */
export function lacking(): string | undefined {
  if (typeof WebAssembly !== "object") return "This browser has no WebAssembly";
  if (!WebAssembly.validate(MODULE)) return "This browser has WebAssembly without SIMD";
  if (typeof DecompressionStream !== "function") return "This browser cannot unpack gzip (DecompressionStream)";
  return undefined;
}
