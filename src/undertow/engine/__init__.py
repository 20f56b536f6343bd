"""From a request to pictures: conditioning, the loop over sampler steps, decoding, and the report of what was done."""
