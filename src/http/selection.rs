//! `kind` and `language` of `GET /api/sessions/{slug}/transcripts`: which entries of a page are wanted.

use serde::Deserialize;

use super::error::ApiError;
use super::query::Params;
use crate::transcript::Kind;

/// Most languages that one request may name.
const MAX_LANGUAGES: usize = 32;

/// Empty lists select everything.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selection {
    kinds: Vec<Kind>,
    /// Languages of translations: entries of other kinds are in every selection.
    languages: Vec<String>,
}

/// The part of an entry's JSON that decides.
#[derive(Deserialize)]
struct Decisive<'a> {
    r#type: &'a str,
    #[serde(default)]
    language: Option<std::borrow::Cow<'a, str>>,
}

impl Selection {
    /// `kind` is a comma list of final, gap, status and translation; `language` one of language codes.
    pub fn of(params: &Params) -> Result<Self, ApiError> {
        let list = |name| params.get(name).into_iter().flat_map(|text| text.split(',')).map(str::trim);
        let languages: Vec<String> = list("language").filter(|text| !text.is_empty()).map(str::to_owned).collect();
        if languages.len() > MAX_LANGUAGES {
            let message = format!("language names more than {MAX_LANGUAGES} languages");
            return Err(ApiError::bad_request("bad_parameter", message));
        }
        let kinds = list("kind").filter(|text| !text.is_empty()).map(kind).collect::<Result<_, _>>()?;
        Ok(Self { kinds, languages })
    }

    pub fn is_everything(&self) -> bool {
        self.kinds.is_empty() && self.languages.is_empty()
    }

    /// `json` is a durable entry as viewers receive it.
    pub fn takes(&self, json: &str) -> bool {
        let Ok(Decisive { r#type, language }) = serde_json::from_str(json) else { return self.is_everything() };
        let is_kind = |kind: &Kind| if *kind == Kind::Final { r#type == "transcript" } else { r#type == kind.as_str() };
        let is_language = |wanted: &String| language.as_deref().is_some_and(|is| is.eq_ignore_ascii_case(wanted));
        let has_kind = self.kinds.is_empty() || self.kinds.iter().any(is_kind);
        let is_translation = r#type == Kind::Translation.as_str();
        has_kind && (!is_translation || self.languages.is_empty() || self.languages.iter().any(is_language))
    }
}

fn kind(text: &str) -> Result<Kind, ApiError> {
    Kind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
        let allowed = Kind::ALL.map(Kind::as_str).join(", ");
        ApiError::bad_request("bad_parameter", format!("kind is a comma list of: {allowed}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn selection(query: &str) -> Result<Selection, ApiError> {
        Selection::of(&Params::of(&TestRequest::with_uri(&format!("/x?{query}")).to_http_request())?)
    }

    #[test]
    fn kinds_and_the_languages_of_translations_are_selected() {
        let entries = [
            r#"{"type":"transcript","language":"en"}"#,
            r#"{"type":"translation","language":"fr"}"#,
            r#"{"type":"translation","language":"d\u0065"}"#,
            r#"{"type":"gap"}"#,
        ];
        let taken = |query| {
            let selection = selection(query).unwrap();
            entries.iter().map(|entry| u8::from(selection.takes(entry))).collect::<Vec<_>>()
        };
        for (query, expected) in [
            ("", [1, 1, 1, 1]),
            ("kind=&language=", [1, 1, 1, 1]),
            ("kind=final", [1, 0, 0, 0]),
            ("kind=final,translation&language=FR", [1, 1, 0, 0]),
            ("language=de,%20fr", [1, 1, 1, 1]),
            ("language=de", [1, 0, 1, 1]),
            ("language=xx&kind=translation", [0, 0, 0, 0]),
        ] {
            assert_eq!(taken(query), expected, "{query}");
        }
        assert!(selection("kind=word").unwrap_err().message.contains("final, gap, status, translation"));
        assert!(selection(&format!("language={}", vec!["fr"; 33].join(","))).is_err());
    }
}
