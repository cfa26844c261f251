"""Pictures: TFDS builders of ours, folders of images, preprocessing, and Grain pipelines."""
