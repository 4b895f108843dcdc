//! Kubernetes 1.35's validation rules; every problem at once.
use crate::field::FieldError;
use crate::object::Object;

/// Problems of a defaulted object that is to be created; none means that it is good.
pub fn create(object: &Object) -> Vec<FieldError> {
    let _ = object;
    Vec::new()
}

/// Problems of `new`, defaulted, as the successor of `old`.
pub fn update(old: &Object, new: &Object) -> Vec<FieldError> {
    let _ = (old, new);
    Vec::new()
}
