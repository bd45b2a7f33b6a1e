"""`edgeline kubeflow`: compiling the pipeline, and talking to a server."""
