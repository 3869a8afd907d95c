//! The federation's shared service: what each cluster exports.
