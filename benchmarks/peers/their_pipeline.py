"""Their side of `benchmarks.peers.pipelines`: the same folder, sampled by diffusers' pipeline."""

import diffusers
import torch

from benchmarks.peers.worker import CFG, GUIDANCE_SCALE, PROMPT, Built, Prepared, serve


def build(folder: str, images: int, steps: int, threads: int) -> Built:
    """Loads the pipeline, with `DDIMScheduler`."""
    torch.set_num_threads(threads)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")

    def sample() -> object:
        prompts = [PROMPT] * images
        return pipe(prompts, guidance_scale=GUIDANCE_SCALE, num_inference_steps=steps, output_type="np").images

    return Built({}, {CFG: lambda: Prepared(sample, {})}, lambda _: None, dict)


if __name__ == "__main__":
    serve(build)
