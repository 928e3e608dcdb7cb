"""The comparison of an optimizer with a Koopman phase: data sets, the trainer, the runs, their figures."""
