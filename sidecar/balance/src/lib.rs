//! Ordered groups in, one endpoint out: spill, ejection, choice; time and randomness are arguments.
