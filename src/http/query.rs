//! Query parameters, with messages that name what is allowed.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use actix_web::{HttpRequest, web};

use super::error::ApiError;
use crate::transcript::{Epoch, Slug};

/// The query of a request, decoded. Empty values count as absent; unknown names are ignored.
pub struct Params(HashMap<String, String>);

impl Params {
    pub fn of(req: &HttpRequest) -> Result<Self, ApiError> {
        let query = web::Query::<Vec<(String, String)>>::from_query(req.query_string())
            .map_err(|_| ApiError::bad_request("bad_query", "the query is not a list of name=value"))?;
        let pairs = query.into_inner();
        Ok(Self(pairs.into_iter().rev().filter(|(_, value)| !value.is_empty()).collect()))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The room of `?session=`.
    pub fn slug(&self) -> Result<Slug, ApiError> {
        Ok(Slug::parse(self.get("session").unwrap_or(""))?)
    }

    pub fn epoch(&self, name: &str) -> Result<Option<Epoch>, ApiError> {
        let parse = |text: &str| {
            Epoch::parse_str(text)
                .map_err(|_| ApiError::bad_request("bad_parameter", format!("{name} is not a UUID as hello gives it")))
        };
        self.get(name).map(parse).transpose()
    }

    pub fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let parse = |text: &str| {
            text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| {
                let (low, high) = (range.start(), range.end());
                ApiError::bad_request("bad_parameter", format!("{name} is not a whole number from {low} to {high}"))
            })
        };
        self.get(name).map(parse).transpose()
    }

    /// A sequence number after which to read.
    pub fn after(&self) -> Result<Option<u64>, ApiError> {
        self.number("after", 0..=MAX_SEQ)
    }
}

/// Largest sequence number: what JavaScript holds exactly, 2^53 - 1.
pub const MAX_SEQ: u64 = (1 << 53) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn params(query: &str) -> Params {
        Params::of(&TestRequest::with_uri(&format!("/x?{query}")).to_http_request()).unwrap()
    }

    #[test]
    fn values_are_decoded_and_the_first_of_two_counts() {
        let p = params("session=a%2Db&session=c&after=&epoch=0193b3f0-0000-7000-8000-000000000001");
        assert_eq!(p.slug().unwrap().as_str(), "a-b");
        assert_eq!(p.after().unwrap(), None);
        assert!(p.epoch("epoch").unwrap().is_some());
    }

    #[test]
    fn faults_name_what_is_allowed() {
        assert!(params("after=-1").after().unwrap_err().message.contains("0 to 9007199254740991"));
        assert!(params("limit=5001").number("limit", 1..=1000).unwrap_err().message.contains("1 to 1000"));
        assert!(params("epoch=x").epoch("epoch").is_err());
        assert!(params("").slug().is_err());
    }
}
