//! A cluster's certificate authority: CSR to SVID.
