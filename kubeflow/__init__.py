"""Everything that is about Kubeflow Pipelines."""
