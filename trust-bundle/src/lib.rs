//! The federation's shared service: who is a member, and which roots speak for it.
