"""Where work runs: worker processes beside this one."""
