"""`python -m medseq_tf COMMAND`: the same as `medseq-tf COMMAND`."""

from medseq_tf.cli import main

if __name__ == "__main__":
    main()
