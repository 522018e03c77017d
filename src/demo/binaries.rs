//! Where PostgreSQL's programs are on this machine. Finds them, runs none but `pg_config`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::DemoError;

/// Environment variable naming the folder of `initdb`, before every other place.
pub const PG_BIN_VARIABLE: &str = "PGWEIR_PG_BIN";

/// Where Debian and Ubuntu put each major version, as `15/bin`.
const DEBIAN_VERSIONS: &str = "/usr/lib/postgresql";

/// The programs without which nothing here works.
const NEEDED: [&str; 4] = ["initdb", "postgres", "pg_basebackup", "psql"];

/// The folder that holds PostgreSQL's programs: `$PGWEIR_PG_BIN`, else what `pg_config` says, else the newest version
/// of Debian's layout, else the `PATH`. Looked for once in the life of the process.
pub fn binaries() -> Result<&'static Path, DemoError> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| match std::env::var_os(PG_BIN_VARIABLE) {
            Some(named) => Some(PathBuf::from(named)).filter(|folder| is_complete(folder)),
            None => from_pg_config()
                .or_else(|| newest_version(Path::new(DEBIAN_VERSIONS)))
                .or_else(|| on_path(&std::env::var_os("PATH")?)),
        })
        .as_deref()
        .ok_or(DemoError::NotInstalled)
}

fn is_complete(folder: &Path) -> bool {
    NEEDED.iter().all(|program| folder.join(program).is_file())
}

fn from_pg_config() -> Option<PathBuf> {
    // `pg_config` also comes with libpq's headers, where the server's programs may be missing.
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    is_complete(&folder).then_some(folder)
}

fn newest_version(versions: &Path) -> Option<PathBuf> {
    std::fs::read_dir(versions)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let major: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((major, entry.path().join("bin")))
        })
        .filter(|(_, folder)| is_complete(folder))
        .max()
        .map(|(_, folder)| folder)
}

fn on_path(path: &OsStr) -> Option<PathBuf> {
    let folder = std::env::split_paths(path).find(|folder| is_complete(folder))?;
    // The programs find their libraries relative to themselves, so a folder of links won't do.
    let initdb = std::fs::canonicalize(folder.join("initdb")).ok()?;
    initdb.parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with_programs(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for program in NEEDED {
            std::fs::write(folder.join(program), "").unwrap();
        }
    }

    #[test]
    fn the_newest_complete_version_wins_by_number() {
        let versions = tempfile::tempdir().unwrap();
        for major in ["9", "15", "16"] {
            folder_with_programs(&versions.path().join(major).join("bin"));
        }
        std::fs::create_dir_all(versions.path().join("17/bin")).unwrap();
        std::fs::create_dir_all(versions.path().join("share/bin")).unwrap();
        assert_eq!(
            newest_version(versions.path()),
            Some(versions.path().join("16/bin"))
        );
    }

    #[test]
    fn no_version_is_not_an_error() {
        assert_eq!(newest_version(Path::new("/nonexistent")), None);
        assert_eq!(on_path(OsStr::new("/nonexistent:/also")), None);
    }

    #[test]
    fn a_link_on_the_path_leads_to_the_real_folder() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().canonicalize().unwrap().join("real");
        let links = base.path().join("links");
        folder_with_programs(&real);
        std::fs::create_dir(&links).unwrap();
        for program in NEEDED {
            std::os::unix::fs::symlink(real.join(program), links.join(program)).unwrap();
        }
        assert_eq!(on_path(links.as_os_str()), Some(real));
    }
}
