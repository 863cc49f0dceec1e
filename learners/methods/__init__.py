"""The learners, one file each: which trajectories a learner uses, and its loss."""
