//! What a database has run behind texts that name no function: in views, row security policies, operators, casts, domains
//! and functions written as columns.
//!
//! Such a text may write though it reads like a read. On a replica it is refused; where it runs on the primary nobody
//! tells, and its session would not be sure to see what it has written.
//!
//! What counts is a `VOLATILE` function, or one of PostgreSQL's own that write data. Those that are written in C and stand
//! behind operators, casts and index support are taken for what they are in practice: they read.
//!
//! Bound: what one answer may have rows; with more, any text may hide a write.

use std::collections::HashSet;

use crate::backend::query::Row;

/// Rows that mean that nothing is known.
const ROWS_MAX: usize = 10_000;

/// A row for each name: `r` a relation, `a` a function that may be written as a column, `d` the database as a whole.
pub(super) const QUESTION: &[u8] = b"WITH RECURSIVE writer AS (\
      SELECT p.oid, p.prolang NOT IN (SELECT oid FROM pg_catalog.pg_language WHERE lanname IN ('c', 'internal')) AS told \
      FROM pg_catalog.pg_proc p WHERE pronamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, \
      'information_schema'::pg_catalog.regnamespace) AND CASE WHEN prokind = 'a' THEN EXISTS (\
        SELECT FROM pg_catalog.pg_aggregate a JOIN pg_catalog.pg_proc f ON f.oid IN (a.aggtransfn, a.aggfinalfn, \
        a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) \
        WHERE a.aggfnoid = p.oid AND f.provolatile = 'v') ELSE provolatile = 'v' END), \
    own AS (SELECT ':funcid (' || pg_catalog.string_agg(oid::pg_catalog.text, '|') || ') ' AS pattern \
      FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND proname IN ('nextval', \
      'setval', 'lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import', 'lo_put', 'lo_truncate', 'lo_truncate64', \
      'lo_unlink', 'lowrite')), \
    piece AS (\
      SELECT 'pg_catalog.pg_rewrite'::pg_catalog.regclass AS classid, r.oid AS objid, ev_class AS relation, \
        ev_action::pg_catalog.text ~ pattern AS writes \
      FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = ev_class, own \
      WHERE ev_type = '1' AND relkind <> 'm' AND relnamespace <> 'pg_catalog'::pg_catalog.regnamespace \
      UNION ALL SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid, polrelid, \
        polqual::pg_catalog.text ~ pattern FROM pg_catalog.pg_policy p, own), \
    hidden AS (\
      SELECT relation FROM piece WHERE writes OR EXISTS (SELECT FROM pg_catalog.pg_depend d \
        WHERE d.classid = piece.classid AND d.objid = piece.objid AND (\
          d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.refobjid IN (SELECT oid FROM writer) \
          OR d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass AND d.refobjid IN (\
            SELECT o.oid FROM pg_catalog.pg_operator o JOIN writer w ON w.oid = o.oprcode))) \
      UNION SELECT piece.relation FROM hidden JOIN pg_catalog.pg_depend d ON d.refobjid = hidden.relation \
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass JOIN piece USING (classid, objid)) \
    SELECT 'r', relname FROM hidden JOIN pg_catalog.pg_class c ON c.oid = relation \
    UNION SELECT 'a', p.proname FROM writer JOIN pg_catalog.pg_proc p USING (oid) \
      JOIN pg_catalog.pg_type t ON t.oid = p.proargtypes[0] \
      WHERE pronargs - pronargdefaults <= 1 AND typtype IN ('c', 'd', 'p') \
    UNION SELECT 'd', '' WHERE EXISTS (SELECT FROM writer WHERE told AND (\
      oid IN (SELECT oprcode FROM pg_catalog.pg_operator) OR oid IN (SELECT castfunc FROM pg_catalog.pg_cast) \
      OR oid IN (SELECT amproc FROM pg_catalog.pg_amproc) \
      OR oid IN (SELECT refobjid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_constraint c ON c.oid = d.objid \
        WHERE d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND c.contypid <> 0 \
        AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass))) \
    LIMIT 10001";

/// See the module.
#[derive(Debug, Default)]
pub struct Hidden {
    /// Any text may write.
    pub anywhere: bool,
    /// By name, whatever the schema: reading them may.
    pub relations: HashSet<Box<[u8]>>,
    /// Functions that a text may call as columns.
    pub attributes: HashSet<Box<[u8]>>,
}

impl Hidden {
    /// What an answer to [`QUESTION`] says; `None` if it makes no sense.
    pub(super) fn read(rows: Vec<Row>) -> Option<Self> {
        let mut hidden = Self {
            anywhere: rows.len() >= ROWS_MAX,
            ..Self::default()
        };
        for row in rows {
            let [Some(kind), Some(name)] = <[_; 2]>::try_from(row).ok()? else {
                return None;
            };
            match &*kind {
                b"r" => {
                    hidden.relations.insert(name.into());
                }
                b"a" => {
                    hidden.attributes.insert(name.into());
                }
                b"d" => hidden.anywhere = true,
                _ => return None,
            }
        }
        Some(hidden)
    }
}
