//! The console: the virtual database `pgweir`.

pub mod console;
