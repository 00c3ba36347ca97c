"""The name that MLflow keeps of `serving.mlflow_model` with models that version 0.1 registered."""

from medseq_tf.serving.mlflow_model import _load_pyfunc as _load_pyfunc
