"""`python -m medseq_tf`: the same as the `medseq-tf` command."""

from medseq_tf.cli import main

main()
