"""Reference pictures as a second context of every cross-attention: IP-Adapter (arXiv:2308.06721) and its files."""
