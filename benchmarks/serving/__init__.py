"""The service under load, beside a diffusers pipeline behind LitServe."""
