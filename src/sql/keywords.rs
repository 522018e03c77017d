//! PostgreSQL's keywords and how each may be used as a name.
//!
//! The table is `pg_get_keywords()` of version 15 together with the words versions 16 to 18 added. A word that is no
//! keyword to an older server is an ordinary name there; classification treats it as a keyword and loses nothing but
//! the call of a user's own function of that name.
//!
//! Made by: `SELECT word, catcode FROM pg_get_keywords() ORDER BY word`.

/// How a keyword may be used where a name is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Category {
    /// Unreserved: any name.
    U,
    /// Column or table name, but not function or type name.
    C,
    /// Function or type name, but not column or table name.
    T,
    /// Reserved.
    R,
}

macro_rules! keywords {
    ($($variant:ident $word:literal $category:ident,)*) => {
        /// A keyword.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub(crate) enum Keyword {
            $($variant,)*
        }

        /// Sorted by word.
        const TABLE: &[(&str, Keyword, Category)] = &[
            $(($word, Keyword::$variant, Category::$category),)*
        ];
    };
}

keywords! {
    Abort "abort" U, Absent "absent" U, Absolute "absolute" U, Access "access" U, Action "action" U,
    Add "add" U, Admin "admin" U, After "after" U, Aggregate "aggregate" U, All "all" R,
    Also "also" U, Alter "alter" U, Always "always" U, Analyse "analyse" R, Analyze "analyze" R,
    And "and" R, Any "any" R, Array "array" R, As "as" R, Asc "asc" R, Asensitive "asensitive" U,
    Assertion "assertion" U, Assignment "assignment" U, Asymmetric "asymmetric" R, At "at" U,
    Atomic "atomic" U, Attach "attach" U, Attribute "attribute" U, Authorization "authorization" T,
    Backward "backward" U, Before "before" U, Begin "begin" U, Between "between" C,
    Bigint "bigint" C, Binary "binary" T, Bit "bit" C, Boolean "boolean" C, Both "both" R,
    Breadth "breadth" U, By "by" U, Cache "cache" U, Call "call" U, Called "called" U,
    Cascade "cascade" U, Cascaded "cascaded" U, Case "case" R, Cast "cast" R, Catalog "catalog" U,
    Chain "chain" U, Char "char" C, Character "character" C, Characteristics "characteristics" U,
    Check "check" R, Checkpoint "checkpoint" U, Class "class" U, Close "close" U,
    Cluster "cluster" U, Coalesce "coalesce" C, Collate "collate" R, Collation "collation" T,
    Column "column" R, Columns "columns" U, Comment "comment" U, Comments "comments" U,
    Commit "commit" U, Committed "committed" U, Compression "compression" U,
    Concurrently "concurrently" T, Conditional "conditional" U, Configuration "configuration" U,
    Conflict "conflict" U, Connection "connection" U, Constraint "constraint" R,
    Constraints "constraints" U, Content "content" U, Continue "continue" U,
    Conversion "conversion" U, Copy "copy" U, Cost "cost" U, Create "create" R, Cross "cross" T,
    Csv "csv" U, Cube "cube" U, Current "current" U, CurrentCatalog "current_catalog" R,
    CurrentDate "current_date" R, CurrentRole "current_role" R, CurrentSchema "current_schema" T,
    CurrentTime "current_time" R, CurrentTimestamp "current_timestamp" R,
    CurrentUser "current_user" R, Cursor "cursor" U, Cycle "cycle" U, Data "data" U,
    Database "database" U, Day "day" U, Deallocate "deallocate" U, Dec "dec" C, Decimal "decimal" C,
    Declare "declare" U, Default "default" R, Defaults "defaults" U, Deferrable "deferrable" R,
    Deferred "deferred" U, Definer "definer" U, Delete "delete" U, Delimiter "delimiter" U,
    Delimiters "delimiters" U, Depends "depends" U, Depth "depth" U, Desc "desc" R,
    Detach "detach" U, Dictionary "dictionary" U, Disable "disable" U, Discard "discard" U,
    Distinct "distinct" R, Do "do" R, Document "document" U, Domain "domain" U, Double "double" U,
    Drop "drop" U, Each "each" U, Else "else" R, Empty "empty" U, Enable "enable" U,
    Encoding "encoding" U, Encrypted "encrypted" U, End "end" R, Enforced "enforced" U,
    Enum "enum" U, Error "error" U, Escape "escape" U, Event "event" U, Except "except" R,
    Exclude "exclude" U, Excluding "excluding" U, Exclusive "exclusive" U, Execute "execute" U,
    Exists "exists" C, Explain "explain" U, Expression "expression" U, Extension "extension" U,
    External "external" U, Extract "extract" C, False "false" R, Family "family" U, Fetch "fetch" R,
    Filter "filter" U, Finalize "finalize" U, First "first" U, Float "float" C,
    Following "following" U, For "for" R, Force "force" U, Foreign "foreign" R, Format "format" U,
    Forward "forward" U, Freeze "freeze" T, From "from" R, Full "full" T, Function "function" U,
    Functions "functions" U, Generated "generated" U, Global "global" U, Grant "grant" R,
    Granted "granted" U, Greatest "greatest" C, Group "group" R, Grouping "grouping" C,
    Groups "groups" U, Handler "handler" U, Having "having" R, Header "header" U, Hold "hold" U,
    Hour "hour" U, Identity "identity" U, If "if" U, Ilike "ilike" T, Immediate "immediate" U,
    Immutable "immutable" U, Implicit "implicit" U, Import "import" U, In "in" R,
    Include "include" U, Including "including" U, Increment "increment" U, Indent "indent" U,
    Index "index" U, Indexes "indexes" U, Inherit "inherit" U, Inherits "inherits" U,
    Initially "initially" R, Inline "inline" U, Inner "inner" T, Inout "inout" C, Input "input" U,
    Insensitive "insensitive" U, Insert "insert" U, Instead "instead" U, Int "int" C,
    Integer "integer" C, Intersect "intersect" R, Interval "interval" C, Into "into" R,
    Invoker "invoker" U, Is "is" T, Isnull "isnull" T, Isolation "isolation" U, Join "join" T,
    Json "json" C, JsonArray "json_array" C, JsonArrayagg "json_arrayagg" C,
    JsonExists "json_exists" C, JsonObject "json_object" C, JsonObjectagg "json_objectagg" C,
    JsonQuery "json_query" C, JsonScalar "json_scalar" C, JsonSerialize "json_serialize" C,
    JsonTable "json_table" C, JsonValue "json_value" C, Keep "keep" U, Key "key" U, Keys "keys" U,
    Label "label" U, Language "language" U, Large "large" U, Last "last" U, Lateral "lateral" R,
    Leading "leading" R, Leakproof "leakproof" U, Least "least" C, Left "left" T, Level "level" U,
    Like "like" T, Limit "limit" R, Listen "listen" U, Load "load" U, Local "local" U,
    Localtime "localtime" R, Localtimestamp "localtimestamp" R, Location "location" U,
    Lock "lock" U, Locked "locked" U, Logged "logged" U, Mapping "mapping" U, Match "match" U,
    Matched "matched" U, Materialized "materialized" U, Maxvalue "maxvalue" U, Merge "merge" U,
    MergeAction "merge_action" C, Method "method" U, Minute "minute" U, Minvalue "minvalue" U,
    Mode "mode" U, Month "month" U, Move "move" U, Name "name" U, Names "names" U,
    National "national" C, Natural "natural" T, Nchar "nchar" C, Nested "nested" U, New "new" U,
    Next "next" U, Nfc "nfc" U, Nfd "nfd" U, Nfkc "nfkc" U, Nfkd "nfkd" U, No "no" U, None "none" C,
    Normalize "normalize" C, Normalized "normalized" U, Not "not" R, Nothing "nothing" U,
    Notify "notify" U, Notnull "notnull" T, Nowait "nowait" U, Null "null" R, Nullif "nullif" C,
    Nulls "nulls" U, Numeric "numeric" C, Object "object" U, Objects "objects" U, Of "of" U,
    Off "off" U, Offset "offset" R, Oids "oids" U, Old "old" U, Omit "omit" U, On "on" R,
    Only "only" R, Operator "operator" U, Option "option" U, Options "options" U, Or "or" R,
    Order "order" R, Ordinality "ordinality" U, Others "others" U, Out "out" C, Outer "outer" T,
    Over "over" U, Overlaps "overlaps" T, Overlay "overlay" C, Overriding "overriding" U,
    Owned "owned" U, Owner "owner" U, Parallel "parallel" U, Parameter "parameter" U,
    Parser "parser" U, Partial "partial" U, Partition "partition" U, Passing "passing" U,
    Password "password" U, Path "path" U, Period "period" U, Placing "placing" R, Plan "plan" U,
    Plans "plans" U, Policy "policy" U, Position "position" C, Preceding "preceding" U,
    Precision "precision" C, Prepare "prepare" U, Prepared "prepared" U, Preserve "preserve" U,
    Primary "primary" R, Prior "prior" U, Privileges "privileges" U, Procedural "procedural" U,
    Procedure "procedure" U, Procedures "procedures" U, Program "program" U,
    Publication "publication" U, Quote "quote" U, Quotes "quotes" U, Range "range" U, Read "read" U,
    Real "real" C, Reassign "reassign" U, Recheck "recheck" U, Recursive "recursive" U, Ref "ref" U,
    References "references" R, Referencing "referencing" U, Refresh "refresh" U,
    Reindex "reindex" U, Relative "relative" U, Release "release" U, Rename "rename" U,
    Repeatable "repeatable" U, Replace "replace" U, Replica "replica" U, Reset "reset" U,
    Restart "restart" U, Restrict "restrict" U, Return "return" U, Returning "returning" R,
    Returns "returns" U, Revoke "revoke" U, Right "right" T, Role "role" U, Rollback "rollback" U,
    Rollup "rollup" U, Routine "routine" U, Routines "routines" U, Row "row" C, Rows "rows" U,
    Rule "rule" U, Savepoint "savepoint" U, Scalar "scalar" U, Schema "schema" U,
    Schemas "schemas" U, Scroll "scroll" U, Search "search" U, Second "second" U,
    Security "security" U, Select "select" R, Sequence "sequence" U, Sequences "sequences" U,
    Serializable "serializable" U, Server "server" U, Session "session" U,
    SessionUser "session_user" R, Set "set" U, Setof "setof" C, Sets "sets" U, Share "share" U,
    Show "show" U, Similar "similar" T, Simple "simple" U, Skip "skip" U, Smallint "smallint" C,
    Snapshot "snapshot" U, Some "some" R, Source "source" U, Sql "sql" U, Stable "stable" U,
    Standalone "standalone" U, Start "start" U, Statement "statement" U, Statistics "statistics" U,
    Stdin "stdin" U, Stdout "stdout" U, Storage "storage" U, Stored "stored" U, Strict "strict" U,
    String "string" U, Strip "strip" U, Subscription "subscription" U, Substring "substring" C,
    Support "support" U, Symmetric "symmetric" R, Sysid "sysid" U, System "system" U,
    SystemUser "system_user" R, Table "table" R, Tables "tables" U, Tablesample "tablesample" T,
    Tablespace "tablespace" U, Target "target" U, Temp "temp" U, Template "template" U,
    Temporary "temporary" U, Text "text" U, Then "then" R, Ties "ties" U, Time "time" C,
    Timestamp "timestamp" C, To "to" R, Trailing "trailing" R, Transaction "transaction" U,
    Transform "transform" U, Treat "treat" C, Trigger "trigger" U, Trim "trim" C, True "true" R,
    Truncate "truncate" U, Trusted "trusted" U, Type "type" U, Types "types" U, Uescape "uescape" U,
    Unbounded "unbounded" U, Uncommitted "uncommitted" U, Unconditional "unconditional" U,
    Unencrypted "unencrypted" U, Union "union" R, Unique "unique" R, Unknown "unknown" U,
    Unlisten "unlisten" U, Unlogged "unlogged" U, Until "until" U, Update "update" U, User "user" R,
    Using "using" R, Vacuum "vacuum" U, Valid "valid" U, Validate "validate" U,
    Validator "validator" U, Value "value" U, Values "values" C, Varchar "varchar" C,
    Variadic "variadic" R, Varying "varying" U, Verbose "verbose" T, Version "version" U,
    View "view" U, Views "views" U, Virtual "virtual" U, Volatile "volatile" U, When "when" R,
    Where "where" R, Whitespace "whitespace" U, Window "window" R, With "with" R, Within "within" U,
    Without "without" U, Work "work" U, Wrapper "wrapper" U, Write "write" U, Xml "xml" U,
    Xmlattributes "xmlattributes" C, Xmlconcat "xmlconcat" C, Xmlelement "xmlelement" C,
    Xmlexists "xmlexists" C, Xmlforest "xmlforest" C, Xmlnamespaces "xmlnamespaces" C,
    Xmlparse "xmlparse" C, Xmlpi "xmlpi" C, Xmlroot "xmlroot" C, Xmlserialize "xmlserialize" C,
    Xmltable "xmltable" C, Year "year" U, Yes "yes" U, Zone "zone" U,
}

/// No keyword is longer.
const MAX_LENGTH: usize = 17;
const LETTERS: usize = 26;

/// Places in [`TABLE`] ordered by first letter and length, and where those of each letter and length start.
static INDEX: ([u16; TABLE.len()], [u16; LETTERS * (MAX_LENGTH + 1) + 1]) = {
    let mut order = [0; TABLE.len()];
    let mut starts = [0; LETTERS * (MAX_LENGTH + 1) + 1];
    let mut filled = 0;
    let mut bucket = 0;
    // The table is sorted, so the words of a letter stand together.
    let mut letter_start = 0;
    while bucket < LETTERS * (MAX_LENGTH + 1) {
        let letter = bucket / (MAX_LENGTH + 1);
        let length = bucket % (MAX_LENGTH + 1);
        starts[bucket] = filled;
        let mut place = letter_start;
        while place < TABLE.len() && (TABLE[place].0.as_bytes()[0] - b'a') as usize == letter {
            if TABLE[place].0.len() == length {
                #[expect(clippy::cast_possible_truncation, reason = "there are some 500 words")]
                {
                    order[filled as usize] = place as u16;
                }
                filled += 1;
            }
            place += 1;
        }
        if length == MAX_LENGTH {
            letter_start = place;
        }
        bucket += 1;
    }
    starts[bucket] = filled;
    (order, starts)
};

impl Keyword {
    /// The keyword an unquoted identifier is, if any.
    pub(crate) fn lookup(ident: &[u8]) -> Option<Self> {
        let letter = usize::from(ident.first()?.to_ascii_lowercase().checked_sub(b'a')?);
        if letter >= LETTERS || ident.len() > MAX_LENGTH {
            return None;
        }
        let bucket = letter * (MAX_LENGTH + 1) + ident.len();
        let (from, to) = (*INDEX.1.get(bucket)?, *INDEX.1.get(bucket + 1)?);
        INDEX
            .0
            .get(usize::from(from)..usize::from(to))?
            .iter()
            .filter_map(|&place| TABLE.get(usize::from(place)))
            .find(|(word, ..)| ident.eq_ignore_ascii_case(word.as_bytes()))
            .map(|&(_, keyword, _)| keyword)
    }

    /// The word in lower case.
    pub(crate) fn word(self) -> &'static str {
        TABLE.get(self as usize).map_or("", |entry| entry.0)
    }

    pub(crate) fn category(self) -> Category {
        TABLE
            .get(self as usize)
            .map_or(Category::R, |entry| entry.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_found_in_any_case() {
        for &(word, keyword, category) in TABLE {
            assert_eq!(Keyword::lookup(word.as_bytes()), Some(keyword));
            assert_eq!(
                Keyword::lookup(word.to_uppercase().as_bytes()),
                Some(keyword)
            );
            assert_eq!(keyword.word(), word);
            assert_eq!(keyword.category(), category);
        }
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(TABLE.iter().all(|(word, ..)| word.len() <= MAX_LENGTH));
        assert!(TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn other_words_are_not_found() {
        for word in [&b""[..], b"selec", b"selects", b"_", b"\xff", b"zzz", b"{"] {
            assert_eq!(Keyword::lookup(word), None);
        }
    }
}
