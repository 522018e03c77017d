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
        concat!(
            part!("format.js"),
            part!("dom.js"),
            part!("table.js"),
            part!("chart.js"),
            part!("overview.js"),
            part!("statements.js"),
            part!("live.js"),
            part!("main.js"),
        )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_loads_nothing_and_runs_nothing_but_its_own() {
        for outside in [
            " src=",
            "<link rel=\"stylesheet",
            "@import",
            "url(",
            "import ",
        ] {
            assert!(!DOCUMENT.contains(outside), "{outside}");
        }
        for inline in [
            " style=\"",
            " onclick=",
            " onload=",
            "javascript:",
            "innerHTML",
        ] {
            assert!(!DOCUMENT.contains(inline), "{inline}");
        }
        assert_eq!(DOCUMENT.matches("<script").count(), 1);
        assert_eq!(DOCUMENT.matches("</script").count(), 1);
        assert_eq!(DOCUMENT.matches("</style").count(), 1);
        assert!(
            !DOCUMENT.contains('\r'),
            "browsers hash what they read, without carriage returns"
        );
    }

    #[test]
    fn the_policy_names_what_is_inside_by_its_hash() {
        let policy = POLICY.to_str().unwrap();
        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
    }

    #[test]
    fn the_page_is_small() {
        assert!(DOCUMENT.len() < 100 * 1024, "{} bytes", DOCUMENT.len());
    }
}
