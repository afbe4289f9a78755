//! Makes one list of columns into a row's struct, its SQL text, its binds and its SELECT, for both databases.
//!
//! A column stands in a list of `rows.rs`, in the migrations, and in the two `schema.rs` that the migrations give. The
//! compiler compares list and schemas; the start of the program compares schemas and database.

use diesel::sql_types::{BigInt, Bool, Double, Jsonb, Nullable, Text, Timestamptz, Uuid};

use super::types::{DbJson, DbTime, DbUuid};

/// A value of a row, and the type of its column in each database.
pub trait ColumnValue {
    type Sqlite;
    type Postgres;
}

macro_rules! column_values {
    ($($value:ty: $sqlite:ty, $postgres:ty;)*) => {$(
        impl ColumnValue for $value {
            type Sqlite = $sqlite;
            type Postgres = $postgres;
        }

        impl ColumnValue for Option<$value> {
            type Sqlite = Nullable<$sqlite>;
            type Postgres = Nullable<$postgres>;
        }
    )*};
}

column_values! {
    String: Text, Text;
    i64: BigInt, BigInt;
    f64: Double, Double;
    bool: Bool, Bool;
    DbUuid: Text, Uuid;
    DbTime: Text, Timestamptz;
    DbJson: Text, Jsonb;
}

/// The rule for a column when a row is written over the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// The stored value stays.
    Keep,
    /// The new value takes its place unless it is an empty object, or of an older row.
    Filled,
    /// The stored value stays unless it is null.
    First,
    /// The new value takes its place unless it is null, or of an older row.
    Newest,
    /// The greater value counts: a counter never falls.
    Greatest,
    /// `ended` stays; otherwise the new value takes its place unless it is of an older row.
    UnlessEnded,
}

/// The column that tells which of two rows is older: rows of several nodes come in any order.
const AGE: &str = "last_seq";

/// A column as SQL names it.
pub struct Column {
    pub name: &'static str,
    pub on_conflict: OnConflict,
}

/// The names, for `INSERT INTO table (…)`; quoted, since some are words of SQL.
pub fn names(columns: &[Column]) -> String {
    let quoted: Vec<String> = columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
    quoted.join(", ")
}

/// `$1, $2, …`: an array for each column.
pub fn arrays(columns: &[Column]) -> String {
    let numbered: Vec<String> = (1..=columns.len()).map(|n| format!("${n}")).collect();
    numbered.join(", ")
}

/// `(?, ?, …)`, once for each of `rows`.
pub fn values(columns: &[Column], rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns.len()].join(", "));
    vec![row.as_str(); rows].join(", ")
}

/// The `SET` list of `ON CONFLICT … DO UPDATE`. `greatest` is what the database calls the function.
pub fn updates(table: &str, columns: &[Column], greatest: &str) -> String {
    let older = format!("excluded.\"{AGE}\" < {table}.\"{AGE}\"");
    let update = |column: &Column| {
        let (name, stored, new) =
            (column.name, format!("{table}.\"{}\"", column.name), format!("excluded.\"{}\"", column.name));
        let value = match column.on_conflict {
            OnConflict::Keep => return None,
            OnConflict::Filled => {
                let is_empty = |value: &str| format!("CAST({value} AS TEXT) = '{{}}'");
                let (none_new, none_stored) = (is_empty(&new), is_empty(&stored));
                format!("CASE WHEN {none_new} OR ({older} AND NOT {none_stored}) THEN {stored} ELSE {new} END")
            }
            OnConflict::First => format!("coalesce({stored}, {new})"),
            OnConflict::Newest => {
                format!("CASE WHEN {older} THEN coalesce({stored}, {new}) ELSE coalesce({new}, {stored}) END")
            }
            OnConflict::Greatest => format!("{greatest}({stored}, {new})"),
            OnConflict::UnlessEnded => {
                format!("CASE WHEN {stored} = 'ended' OR ({older} AND {new} <> 'ended') THEN {stored} ELSE {new} END")
            }
        };
        Some(format!("\"{name}\" = {value}"))
    };
    columns.iter().filter_map(update).collect::<Vec<_>>().join(", ")
}

/// Declares a row: `pub struct NAME of TABLE { pub COLUMN: TYPE; … }`. A column may say `as "expression"`, which is read
/// in its place, and `=> RULE`, an [`OnConflict`] (`Keep` unless it says so).
macro_rules! row {
    (
        $(#[$meta:meta])*
        pub struct $Row:ident of $table:ident {
            $($(#[$doc:meta])* pub $column:ident: $value:ty $(as $expression:literal)? $(=> $rule:ident)?;)*
        }
    ) => {
        $(#[$meta])*
        pub struct $Row {
            $($(#[$doc])* pub $column: $value,)*
        }

        impl $Row {
            /// In the order of the binds and of the SELECT.
            pub(super) const COLUMNS: &'static [$crate::db::columns::Column] = &[$($crate::db::columns::Column {
                name: stringify!($column),
                on_conflict: $crate::db::columns::row!(@rule $($rule)?),
            }),*];

            /// Binds the values of one row.
            pub(super) fn bind<'r>(
                &'r self,
                query: diesel::query_builder::BoxedSqlQuery<'r, diesel::sqlite::Sqlite, diesel::query_builder::SqlQuery>,
            ) -> diesel::query_builder::BoxedSqlQuery<'r, diesel::sqlite::Sqlite, diesel::query_builder::SqlQuery> {
                query$(.bind::<<$value as $crate::db::columns::ColumnValue>::Sqlite, _>(&self.$column))*
            }

            /// Binds an array for each column.
            pub(super) fn bind_arrays<'r>(
                rows: &'r [Self],
                query: diesel::query_builder::BoxedSqlQuery<'r, diesel::pg::Pg, diesel::query_builder::SqlQuery>,
            ) -> diesel::query_builder::BoxedSqlQuery<'r, diesel::pg::Pg, diesel::query_builder::SqlQuery> {
                query$(.bind::<diesel::sql_types::Array<<$value as $crate::db::columns::ColumnValue>::Postgres>, _>(
                    rows.iter().map(|row| &row.$column).collect::<Vec<_>>(),
                ))*
            }

            /// The columns that a SELECT reads, on SQLite.
            pub(super) fn sqlite_columns()
            -> ($($crate::db::columns::row!(@type sqlite, Sqlite, $table, $column, $value $(, $expression)?),)*) {
                ($($crate::db::columns::row!(@select sqlite, $table, $column $(, $expression)?),)*)
            }

            /// The columns that a SELECT reads, on Postgres.
            pub(super) fn postgres_columns()
            -> ($($crate::db::columns::row!(@type postgres, Postgres, $table, $column, $value $(, $expression)?),)*) {
                ($($crate::db::columns::row!(@select postgres, $table, $column $(, $expression)?),)*)
            }
        }
    };
    (@rule) => { $crate::db::columns::OnConflict::Keep };
    (@rule $rule:ident) => { $crate::db::columns::OnConflict::$rule };
    (@type $backend:ident, $types:ident, $table:ident, $column:ident, $value:ty) => {
        $crate::db::$backend::schema::$table::$column
    };
    (@type $backend:ident, $types:ident, $table:ident, $column:ident, $value:ty, $expression:literal) => {
        diesel::expression::SqlLiteral<<$value as $crate::db::columns::ColumnValue>::$types>
    };
    (@select $backend:ident, $table:ident, $column:ident) => { $crate::db::$backend::schema::$table::$column };
    (@select $backend:ident, $table:ident, $column:ident, $expression:literal) => { diesel::dsl::sql($expression) };
}
pub(super) use row;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{SessionRow, TranscriptRow};

    #[test]
    fn each_rule_is_written_out() {
        let column = |name, on_conflict| Column { name, on_conflict };
        let columns = [
            column("a", OnConflict::Keep),
            column("b", OnConflict::Filled),
            column("c", OnConflict::First),
            column("d", OnConflict::Newest),
            column("e", OnConflict::Greatest),
            column("f", OnConflict::UnlessEnded),
        ];
        let expected = [
            r#""b" = CASE WHEN CAST(excluded."b" AS TEXT) = '{}' OR (excluded."last_seq" < t."last_seq" AND NOT CAST(t."b" AS TEXT) = '{}') THEN t."b" ELSE excluded."b" END"#,
            r#""c" = coalesce(t."c", excluded."c")"#,
            r#""d" = CASE WHEN excluded."last_seq" < t."last_seq" THEN coalesce(t."d", excluded."d") ELSE coalesce(excluded."d", t."d") END"#,
            r#""e" = max(t."e", excluded."e")"#,
            r#""f" = CASE WHEN t."f" = 'ended' OR (excluded."last_seq" < t."last_seq" AND excluded."f" <> 'ended') THEN t."f" ELSE excluded."f" END"#,
        ];
        assert_eq!(updates("t", &columns, "max"), expected.join(", "));
        assert_eq!(names(&columns[..2]), r#""a", "b""#);
        assert_eq!((arrays(&columns[..3]), values(&columns[..2], 2)), ("$1, $2, $3".into(), "(?, ?), (?, ?)".into()));
    }

    /// A column that a migration adds and no row has would never be written.
    #[test]
    fn the_rows_have_every_column_of_the_schemas_but_created_at() {
        for (columns, table) in [(SessionRow::COLUMNS, "sessions"), (TranscriptRow::COLUMNS, "transcripts")] {
            for schema in [include_str!("sqlite/schema.rs"), include_str!("postgres/schema.rs")] {
                let begin = schema.find(&format!("    {table} (")).unwrap();
                let body = &schema[begin..begin + schema[begin..].find("\n    }").unwrap()];
                let mut of_schema: Vec<&str> =
                    body.lines().filter_map(|line| Some(line.split_once(" -> ")?.0.trim())).collect();
                let mut of_row: Vec<&str> = columns.iter().map(|column| column.name).chain(["created_at"]).collect();
                of_schema.sort_unstable();
                of_row.sort_unstable();
                assert_eq!(of_schema, of_row, "{table}");
            }
        }
    }
}
