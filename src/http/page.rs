//! The page: one document with its style and script inside, and the policy that lets nothing else in.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::reply::{self, Reply};

macro_rules! part {
    ($name:literal) => {
        include_str!(concat!("page/", $name))
    };
}

macro_rules! style {
    () => {
        part!("style.css")
    };
}

/// One module, in parts that are read after each other.
macro_rules! script {
    () => {
        part!("main.js")
    };
}

const DOCUMENT: &str = concat!(
    part!("head.html"),
    "<style>",
    style!(),
    "</style>\n",
    part!("body.html"),
    "<script type=\"module\">",
    script!(),
    "</script>\n</body>\n</html>\n",
);

/// Only the style and script inside the document run, by their hashes; data comes from here alone.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(style!()),
        hash(script!()),
    );
    // Base64 and the text above are all printable.
    HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

pub(super) fn reply() -> Reply {
    reply::page(DOCUMENT, &POLICY)
}
