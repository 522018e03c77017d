//! The tables a statement names: best effort, bounded, for metrics and the cache.
//!
//! Names only: views are not looked into, `search_path` is not applied, a table reached through a function or a trigger
//! is not seen. `complete` says whether the bound was kept; it does not promise more than that.

use std::fmt;

use super::name::Name;

/// More tables than this are not listed.
const MAX_TABLES: usize = 32;

/// What a statement does with a table it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableAccess {
    Read,
    /// Rows or definition are changed, or it is locked by name.
    Write,
}

/// A table as named in a statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    pub schema: Option<Name>,
    pub name: Name,
    pub access: TableAccess,
}

/// The tables of a text, each once per way of access, in order of appearance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    list: Vec<TableName>,
    complete: bool,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            complete: true,
        }
    }
}

impl Tables {
    pub fn list(&self) -> &[TableName] {
        &self.list
    }

    /// Whether every table that was found is in the list.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub(crate) fn push(&mut self, table: TableName) {
        if self.list.contains(&table) {
            return;
        }
        if self.list.len() < MAX_TABLES {
            self.list.push(table);
        } else {
            self.complete = false;
        }
    }

    pub(crate) fn set_incomplete(&mut self) {
        self.complete = false;
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.complete &= other.complete;
        for table in other.list {
            self.push(table);
        }
    }

    /// Whether the answer of reading one of these depends on the server or the server connection that is asked:
    /// statistics, locks, settings, prepared statements and the like.
    pub(crate) fn any_node_local(&self) -> bool {
        self.list.iter().any(|table| {
            let in_catalog = table
                .schema
                .as_ref()
                .is_none_or(|schema| *schema == "pg_catalog");
            in_catalog && table.name.as_str().is_some_and(is_node_local)
        })
    }
}

fn is_node_local(view: &str) -> bool {
    const VIEWS: &[&str] = &[
        "pg_available_extension_versions",
        "pg_available_extensions",
        "pg_backend_memory_contexts",
        "pg_config",
        "pg_cursors",
        "pg_file_settings",
        "pg_hba_file_rules",
        "pg_ident_file_mappings",
        "pg_locks",
        "pg_prepared_statements",
        "pg_prepared_xacts",
        "pg_replication_origin_status",
        "pg_replication_slots",
        "pg_sequences",
        "pg_settings",
        "pg_shmem_allocations",
        "pg_timezone_abbrevs",
        "pg_timezone_names",
    ];
    // Covers pg_statio_* too; pg_stats and pg_statistic come along, which costs only a read on the primary.
    view.starts_with("pg_stat") || view.starts_with("pg_wait_") || VIEWS.contains(&view)
}

impl fmt::Display for TableName {
    /// `schema.name`, with `!` behind it if written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        write!(f, "{}", self.name)?;
        match self.access {
            TableAccess::Read => Ok(()),
            TableAccess::Write => f.write_str("!"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> TableName {
        TableName {
            schema: None,
            name: name.into(),
            access: TableAccess::Read,
        }
    }

    #[test]
    fn a_table_is_listed_once() {
        let mut tables = Tables::default();
        tables.push(table("a"));
        tables.push(table("a"));
        assert_eq!(tables.list().len(), 1);
        assert!(tables.is_complete());
    }

    #[test]
    fn the_list_is_bounded() {
        let mut tables = Tables::default();
        for index in 0..100 {
            tables.push(table(&format!("t{index}")));
        }
        assert_eq!(tables.list().len(), MAX_TABLES);
        assert!(!tables.is_complete());
    }

    #[test]
    fn views_of_the_server_itself_are_node_local() {
        let mut tables = Tables::default();
        tables.push(table("orders"));
        assert!(!tables.any_node_local());
        tables.push(table("pg_stat_activity"));
        assert!(tables.any_node_local());
    }
}
