"""The autoencoder between pixels and latents: networks, precision, exact tiling, latent spaces and fast previews."""
