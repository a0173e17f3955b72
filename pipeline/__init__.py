"""The compile side: from a checkpoint to a served repository, stage by stage."""
