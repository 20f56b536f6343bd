"""A diffusers pipeline behind LitServe: one request after the other, as its guide for images does.

    python -m benchmarks.serving.litserve_peer --port 8300

LitServe is not among undertow's packages: `make load` installs it into out/peers/litserve, last on the path.
"""

import argparse
import base64
import io
from typing import Any

import diffusers
import litserve  # pyright: ignore[reportMissingImports]
import torch
from litserve import server  # pyright: ignore[reportMissingImports]

from undertow.embedded import embedded_models

ADAPTERS = ("mosaic", "line-drawing")

# LitServe 0.2.19 cannot start beside version 2 of the package mcp, which it looks for and takes for version 1.
server._MCP_AVAILABLE = False  # pyright: ignore[reportPrivateUsage]


class Pipeline(litserve.LitAPI):  # pyright: ignore[reportUntypedBaseClass]
    """Its adapters are loaded once, and set for each request."""

    def setup(self, device: str) -> None:
        del device
        torch.set_num_threads(1)
        folder = embedded_models()["emoji"]
        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder).to(torch.float32)
        self.pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            self.pipeline.scheduler.config, use_karras_sigmas=True
        )
        self.pipeline.set_progress_bar_config(disable=True)
        for name in ADAPTERS:
            self.pipeline.load_lora_weights(folder / "adapters" / f"{name}.safetensors", adapter_name=name)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def predict(self, request: dict[str, Any]) -> list[Any]:
        if request["adapter"] is None:
            self.pipeline.disable_lora()
        else:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters([request["adapter"]])
        generators = [torch.Generator().manual_seed(request["seed"] + k) for k in range(request["count"])]
        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        found = self.pipeline(
            request["prompt"],
            num_inference_steps=request["steps"],
            guidance_scale=request["guidance_scale"],
            num_images_per_prompt=request["count"],
            generator=generators,
            height=side,
            width=side,
        )
        return list(found.images)  # pyright: ignore[reportAttributeAccessIssue]

    def encode_response(self, pictures: list[Any]) -> dict[str, Any]:
        return {"pictures": [_png(picture) for picture in pictures]}


def _png(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8300)
    port = parser.parse_args().port
    server = litserve.LitServer(Pipeline(), accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(port=port, host="127.0.0.1", generate_client_file=False, num_api_servers=1)


if __name__ == "__main__":
    main()
