"""What each mode of `main.py` does."""

from etils import epath

from guided_diffusion_jax.commands import classifier, demo, evaluate, sample, train, weights

MODES = {
    "train": lambda config, workdir, given: train.run(config, workdir),
    "classifier": lambda config, workdir, given: classifier.run(config, workdir),
    "sample": lambda config, workdir, given: sample.run(config, workdir, epath.Path(given.out or workdir / "samples")),
    "evaluate": lambda config, workdir, given: evaluate.run(config, workdir),
    "demo": lambda config, workdir, given: demo.run(config, workdir),
    "import": lambda config, workdir, given: weights.read(config, workdir, given.import_path),
    "export": lambda config, workdir, given: weights.write(config, workdir, given.export_path),
}
