//! A connection that leaves no trace on the server's side: it names no statement, and sets nothing beyond its transaction.
//!
//! A pooler such as PgBouncer gives each transaction to whichever server connection is free, and the same one to other
//! programs between two of ours. diesel-async's own connection names its statements `s0`, `s1`, …, as every program with
//! tokio-postgres does: behind a pooler they collide. Here each statement is unnamed, and goes out with its values in one
//! message; diesel makes the SQL and reads the rows.

use std::future::Future;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use diesel::connection::{CacheSize, DynInstrumentation, Instrumentation};
use diesel::pg::{Pg, PgMetadataLookup, PgQueryBuilder, PgTypeMetadata, PgValue};
use diesel::query_builder::bind_collector::RawBytesBindCollector;
use diesel::query_builder::{AsQuery, QueryBuilder, QueryFragment, QueryId};
use diesel::row::{Field, PartialRow, Row, RowIndex, RowSealed};
use diesel::{ConnectionError, ConnectionResult, QueryResult};
use diesel_async::{AnsiTransactionManager, AsyncConnection, AsyncConnectionCore, SimpleAsyncConnection};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Connection};

use super::fault::Fault;
use crate::db::StoreError;

/// A connection of diesel's whose statements have no name.
pub struct PgConnection {
    client: Arc<Client>,
    /// Why the socket ended.
    ended: Arc<OnceLock<Fault>>,
    /// The last fault: errors that pass through `diesel_migrations` are text alone.
    last_fault: Option<Fault>,
    transactions: AnsiTransactionManager,
    instrumentation: DynInstrumentation,
}

impl PgConnection {
    /// Drives `link` until the connection is dropped. Call it on a tokio runtime.
    pub fn new<S, T>(client: Client, mut link: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ended = Arc::new(OnceLock::new());
        let reason = ended.clone();
        tokio::spawn(async move {
            if let Err(error) = (&mut link).await {
                // Before the link is dropped: whoever waits for an answer finds the reason.
                let _ = reason.set(Fault::new(&error));
            }
        });
        Self {
            client: Arc::new(client),
            ended,
            last_fault: None,
            transactions: AnsiTransactionManager::default(),
            instrumentation: DynInstrumentation::none(),
        }
    }

    /// Runs `work` between BEGIN with `settings` (SQL that ends with its transaction) and COMMIT. BEGIN goes out in one go
    /// with the first statement. An error that leaves the connection in doubt breaks it: see [`StoreError`].
    pub async fn transaction<'c, T, W, F>(&'c mut self, settings: &str, work: W) -> Result<T, StoreError>
    where
        W: FnOnce(&'c mut Self) -> F,
        F: Future<Output = Result<T, StoreError>>,
    {
        let (client, ended) = (self.client.clone(), self.ended.clone());
        let control = async |sql: &str| match client.batch_execute(sql).await {
            Ok(()) => Ok(()),
            Err(error) => Err(StoreError::from(explain(&error, &ended))),
        };
        let begin = format!("BEGIN; {settings}");
        let (begun, result) = futures_util::join!(control(&begin), work(self));
        match begun.and(result) {
            Ok(value) => control("COMMIT").await.map(|()| value),
            // Dropped with its transaction.
            Err(error) if error.breaks_connection() => Err(error),
            Err(error) => match control("ROLLBACK").await {
                Ok(()) => Err(error),
                Err(worse) => Err(worse),
            },
        }
    }

    pub fn last_fault(&self) -> Option<&Fault> {
        self.last_fault.as_ref()
    }

    fn fail(&mut self, error: &tokio_postgres::Error) -> diesel::result::Error {
        let fault = explain(error, &self.ended);
        self.last_fault = Some(fault.clone());
        fault.into()
    }
}

fn explain(error: &tokio_postgres::Error, ended: &OnceLock<Fault>) -> Fault {
    match ended.get() {
        Some(reason) if error.is_closed() => reason.clone(),
        _ => Fault::new(error),
    }
}

impl SimpleAsyncConnection for PgConnection {
    async fn batch_execute(&mut self, sql: &str) -> QueryResult<()> {
        let result = self.client.batch_execute(sql).await;
        result.map_err(|error| self.fail(&error))
    }
}

impl AsyncConnectionCore for PgConnection {
    type ExecuteFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<usize>>;
    type LoadFuture<'conn, 'query> = BoxFuture<'conn, QueryResult<Self::Stream<'conn, 'query>>>;
    type Stream<'conn, 'query> = BoxStream<'static, QueryResult<PgRow>>;
    type Row<'conn, 'query> = PgRow;
    type Backend = Pg;

    fn load<'conn, 'query, T>(&'conn mut self, source: T) -> Self::LoadFuture<'conn, 'query>
    where
        T: AsQuery + 'query,
        T::Query: QueryFragment<Pg> + QueryId + 'query,
    {
        let statement = Statement::new(&source.as_query());
        async move {
            let Statement { sql, values } = statement?;
            let client = self.client.clone();
            let rows = async { client.query_typed_raw(&sql, values).await?.try_collect::<Vec<_>>().await };
            let rows = rows.await.map_err(|error| self.fail(&error))?;
            Ok(stream::iter(rows.into_iter().map(|row| Ok(PgRow::new(row)))).boxed())
        }
        .boxed()
    }

    fn execute_returning_count<'conn, 'query, T>(&'conn mut self, source: T) -> Self::ExecuteFuture<'conn, 'query>
    where
        T: QueryFragment<Pg> + QueryId + 'query,
    {
        let statement = Statement::new(&source);
        async move {
            let Statement { sql, values } = statement?;
            let values: Vec<_> = values.iter().map(|(v, t)| (v as &(dyn ToSql + Sync), t.clone())).collect();
            let result = self.client.execute_typed(&sql, &values).await;
            let rows = result.map_err(|error| self.fail(&error))?;
            Ok(usize::try_from(rows).unwrap_or(usize::MAX))
        }
        .boxed()
    }
}

/// For diesel's migrations; everything else begins its transactions by [`PgConnection::transaction`].
impl AsyncConnection for PgConnection {
    type TransactionManager = AnsiTransactionManager;

    async fn establish(_: &str) -> ConnectionResult<Self> {
        Err(ConnectionError::InvalidConnectionUrl("connections are made by Connector".to_owned()))
    }

    fn transaction_state(&mut self) -> &mut AnsiTransactionManager {
        &mut self.transactions
    }

    fn instrumentation(&mut self) -> &mut dyn Instrumentation {
        &mut *self.instrumentation
    }

    fn set_instrumentation(&mut self, instrumentation: impl Instrumentation) {
        self.instrumentation = instrumentation.into();
    }

    /// Nothing is prepared, so nothing is cached.
    fn set_prepared_statement_cache_size(&mut self, _: CacheSize) {}
}

/// A query of diesel's as it goes over the wire.
struct Statement {
    sql: String,
    values: Vec<(Value, Type)>,
}

impl Statement {
    fn new(query: &impl QueryFragment<Pg>) -> QueryResult<Self> {
        let mut builder = PgQueryBuilder::default();
        query.to_sql(&mut builder, &Pg)?;
        let mut collector = RawBytesBindCollector::<Pg>::new();
        query.collect_binds(&mut collector, &mut BuiltInOnly, &Pg)?;
        let values = collector.binds.into_iter().zip(&collector.metadata).map(|(bytes, metadata)| {
            let fault = |e: Box<dyn std::error::Error + Send + Sync>| diesel::result::Error::SerializationError(e);
            let oid = metadata.oid().map_err(|e| fault(Box::new(e)))?;
            let of_type = Type::from_oid(oid).ok_or_else(|| fault("a type that is not built in".into()))?;
            Ok((Value(bytes), of_type))
        });
        Ok(Self { sql: builder.finish(), values: values.collect::<QueryResult<_>>()? })
    }
}

/// No column of ours has a type that a server would have to be asked for.
struct BuiltInOnly;

impl PgMetadataLookup for BuiltInOnly {
    fn lookup_type(&mut self, _: &str, _: Option<&str>) -> PgTypeMetadata {
        PgTypeMetadata::new(0, 0)
    }
}

/// A value that diesel has brought into the form of its type.
#[derive(Debug)]
struct Value(Option<Vec<u8>>);

impl ToSql for Value {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match &self.0 {
            Some(bytes) => {
                out.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A row for diesel to read.
pub struct PgRow {
    row: tokio_postgres::Row,
    types: Vec<NonZeroU32>,
}

impl PgRow {
    fn new(row: tokio_postgres::Row) -> Self {
        let oid = |c: &tokio_postgres::Column| NonZeroU32::new(c.type_().oid()).expect("no type has the number 0");
        Self { types: row.columns().iter().map(oid).collect(), row }
    }
}

impl RowSealed for PgRow {}

impl<'a> Row<'a, Pg> for PgRow {
    type InnerPartialRow = Self;
    type Field<'b>
        = PgField<'b>
    where
        Self: 'b,
        'a: 'b;

    fn field_count(&self) -> usize {
        self.row.len()
    }

    fn get<'b, I>(&'b self, index: I) -> Option<Self::Field<'b>>
    where
        'a: 'b,
        Self: RowIndex<I>,
    {
        Some(PgField { row: self, index: self.idx(index)? })
    }

    fn partial_row(&self, range: Range<usize>) -> PartialRow<'_, Self::InnerPartialRow> {
        PartialRow::new(self, range)
    }
}

impl RowIndex<usize> for PgRow {
    fn idx(&self, index: usize) -> Option<usize> {
        (index < self.row.len()).then_some(index)
    }
}

impl<'a> RowIndex<&'a str> for PgRow {
    fn idx(&self, name: &'a str) -> Option<usize> {
        self.row.columns().iter().position(|column| column.name() == name)
    }
}

pub struct PgField<'a> {
    row: &'a PgRow,
    index: usize,
}

impl<'a> Field<'a, Pg> for PgField<'a> {
    fn field_name(&self) -> Option<&str> {
        Some(self.row.row.columns()[self.index].name())
    }

    fn value(&self) -> Option<PgValue<'_>> {
        let Bytes(bytes) = self.row.row.get::<_, Option<Bytes<'_>>>(self.index)?;
        Some(PgValue::new(bytes, &self.row.types[self.index]))
    }
}

/// A value as it came, whatever its type.
struct Bytes<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Bytes<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
