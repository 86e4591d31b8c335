"""What `main` can do: one file per task, each with `run(config, workdir)`, found by `config.task`."""
