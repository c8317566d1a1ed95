"""New checkpoints while serving: a policy of promotion, and the steps from a checkpoint to a champion."""
