"""From a prepared cohort to the best honest model: the plan, the candidates and the choice."""
