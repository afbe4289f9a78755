//! The tables as diesel sees them on SQLite.

diesel::table! {
    sessions (session_id) {
        session_id -> Text,
        slug -> Text,
        started_at -> Text,
        ended_at -> Nullable<Text>,
        state -> Text,
        last_seq -> BigInt,
        language -> Nullable<Text>,
        received_ms -> BigInt,
        inserted_ms -> BigInt,
        acknowledged_ms -> BigInt,
        spoken_ms -> BigInt,
        finalised_ms -> BigInt,
        lost_ms -> BigInt,
        losses -> Text,
        created_at -> Text,
        decoded_ms -> BigInt,
        sent_ms -> BigInt,
        resent_ms -> BigInt,
    }
}

diesel::table! {
    transcripts (session_id, seq) {
        session_id -> Text,
        seq -> BigInt,
        entry_id -> Text,
        kind -> Text,
        slug -> Text,
        revision -> BigInt,
        text -> Nullable<Text>,
        start_ms -> Nullable<BigInt>,
        end_ms -> Nullable<BigInt>,
        language -> Nullable<Text>,
        confidence -> Nullable<Double>,
        speaker_identity -> Nullable<Text>,
        speaker_name -> Nullable<Text>,
        words -> Nullable<Text>,
        reason -> Nullable<Text>,
        status -> Nullable<Text>,
        timestamp -> Nullable<Text>,
        decode_ms -> Nullable<BigInt>,
        stt_ms -> Nullable<BigInt>,
        server_ms -> Nullable<BigInt>,
        durable -> Bool,
        of -> Nullable<Text>,
        created_at -> Text,
    }
}

diesel::allow_tables_to_appear_in_same_query!(sessions, transcripts);
