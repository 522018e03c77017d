//! `config/reference.md`, made from the key table of `raw`; a test holds the file current.

use std::fmt::Write as _;

use super::raw::{Key, SectionDocs, sections};

const HEAD: &str = "\
<!-- Made by `pgweir reference` from src/config/raw.rs; edit that. -->

# Configuration reference

The file is TOML. A key or section that is not listed here is refused, and every problem is reported at once with its
place. `pgweir check --config FILE` does so without starting anything.

- A *duration* is a string with a unit: `\"500ms\"`, `\"30s\"`, `\"5min\"`, `\"1h\"`, `\"1d\"`; `\"0\"` needs none.
- A *size* is a string with a unit: `\"512B\"`, `\"64KiB\"`, `\"16MiB\"`, `\"1GiB\"`.
- Where the type is `number, or 0` or `duration, or \"0\"`, zero switches the limit off.
- A relative *path* is relative to the folder of the file it stands in.
- `${VAR}` in any string is filled in from the environment; `$${` is a literal `${`. Secrets are best given so, or in a
  file of their own (`password_file`); they are never printed.
- A flag wins over a `PGWEIR_*` environment variable, which wins over the file. `--set KEY=VALUE` gives any key by its
  dotted path, such as `--set databases.app.max_size=5`; a string needs no quotes there, and a list is TOML's.

*Takes effect*: after a reload (SIGHUP, or `RELOAD` in the console), a changed key holds

- `live`: for every client, from its next transaction;
- `new connections`: for client or server connections made afterwards;
- `restart`: not before pgweir is started again.
";

/// The whole reference, in Markdown.
pub fn render() -> String {
    let mut out = HEAD.to_owned();
    for section in sections() {
        render_section(&section, &mut out);
    }
    out
}

fn render_section(section: &SectionDocs, out: &mut String) {
    // Writing to a string can't fail.
    let _ = write!(
        out,
        "\n## `[{}]`\n\n{}\n\n",
        section.path,
        sentence(section.docs)
    );
    out.push_str("| key | type | default | takes effect | meaning |\n|---|---|---|---|---|\n");
    for key in &section.keys {
        render_key(key, out);
    }
}

fn render_key(key: &Key, out: &mut String) {
    let default = key.default.as_ref().map_or_else(
        || "not set".to_owned(),
        |default| format!("`{}`", cell(default)),
    );
    let _ = writeln!(
        out,
        "| `{}` | {} | {default} | {} | {} |",
        key.name,
        cell(&key.kind),
        key.effect.as_str(),
        cell(&sentence(key.docs)),
    );
}

/// A doc comment's lines as one.
fn sentence(docs: &[&str]) -> String {
    docs.iter()
        .map(|line| line.trim())
        .collect::<Vec<_>>()
        .join(" ")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_reference_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/reference.md");
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed == render(),
            "config/reference.md is not what src/config/raw.rs says: run `pgweir reference > config/reference.md`"
        );
    }

    #[test]
    fn every_section_and_key_is_documented() {
        for section in sections() {
            assert!(!sentence(section.docs).is_empty(), "[{}]", section.path);
            for key in section.keys {
                let docs = sentence(key.docs);
                assert!(
                    docs.ends_with('.'),
                    "{}.{}: {docs:?}",
                    section.path,
                    key.name
                );
            }
        }
    }
}
