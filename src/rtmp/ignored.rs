//! Items that a publisher sends and nobody uses: it costs nothing but a count and, once a connection, a log line.

/// A kind of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ignored {
    EarlyAudio,
    ForeignAudio,
    SecondPublish,
    Play,
    UnreadableCommand,
    UnfinishedMessage,
    SideTrack,
    StrayCodec,
    BadConfig,
}

/// Label in metrics, and what the operator reads.
const TABLE: [(Ignored, &str, &str); 9] = [
    (Ignored::EarlyAudio, "early_audio", "audio before the publish was asked"),
    (Ignored::ForeignAudio, "foreign_audio", "audio on the message stream of a publish that was refused"),
    (Ignored::SecondPublish, "second_publish", "another publish on a connection that has one; it was refused"),
    (Ignored::Play, "play", "a play on a connection that publishes; it was refused"),
    (Ignored::UnreadableCommand, "unreadable_command", "a command without a name"),
    (Ignored::UnfinishedMessage, "unfinished_message", "a message that its sender did not finish"),
    (Ignored::SideTrack, "side_track", "audio of another track than the first"),
    (Ignored::StrayCodec, "stray_codec", "single audio tags of another codec"),
    (Ignored::BadConfig, "bad_config", "an audio configuration that cannot be read"),
];

impl Ignored {
    pub const ALL: [Self; 9] = [
        Self::EarlyAudio,
        Self::ForeignAudio,
        Self::SecondPublish,
        Self::Play,
        Self::UnreadableCommand,
        Self::UnfinishedMessage,
        Self::SideTrack,
        Self::StrayCodec,
        Self::BadConfig,
    ];

    fn row(self) -> &'static (Self, &'static str, &'static str) {
        TABLE.iter().find(|(kind, ..)| *kind == self).expect("every kind has a row")
    }

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    pub fn sentence(self) -> &'static str {
        self.row().2
    }
}
