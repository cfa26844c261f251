"""What the modes of the command line do: flags in, files out."""
