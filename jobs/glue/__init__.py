"""What all jobs share: command line, settings, artefact store, Ray, progress."""
