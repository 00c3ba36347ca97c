"""`python -m medseq_tf.tune`: the same as `medseq-tf tune`."""

import sys

import medseq_tf

if __name__ == "__main__":
    from medseq_tf.cli import main

    main("tune")
elif __name__ == "medseq_tf.tune":  # would stand where the package has its function
    sys.modules[__name__] = medseq_tf.tune  # type: ignore[assignment]
