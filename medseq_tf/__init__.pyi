from medseq_tf.automl.auto import auto as auto
from medseq_tf.dataset.prepare import prepare as prepare
from medseq_tf.evaluation.evaluate import evaluate as evaluate
from medseq_tf.evaluation.explain.explain import explain as explain
from medseq_tf.evaluation.feature_cache import cache as cache
from medseq_tf.reporting.doctor import doctor as doctor
from medseq_tf.reporting.report import report as report
from medseq_tf.runs.track import track as track
from medseq_tf.serving.export import export as export
from medseq_tf.serving.predict import predict as predict
from medseq_tf.serving.watch import watch as watch
from medseq_tf.training.train import train as train
from medseq_tf.tuning.tune import tune as tune

__version__: str
COMMANDS: dict[str, str]
