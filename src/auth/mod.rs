//! Who is allowed in: proofs of identity towards clients and servers, and the rules and files behind them.
//!
//! Pure: nothing here touches a socket. Files are read only by the `load` functions of [`hba`], [`ident`] and
//! [`userlist`]; the dialogue over a stream lives in `frontend::authenticate` and `backend::login`.
//!
//! Invariants: secrets never appear in `Debug` output or error texts; secrets are compared in constant time; an
//! unknown user is indistinguishable from a wrong password.

pub mod cert;
pub mod hba;
pub mod ident;
pub mod md5;
pub mod scram;
pub mod secrets;
pub mod userlist;
