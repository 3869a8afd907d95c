//! The clusterset zone (pure) and its hickory handler.
