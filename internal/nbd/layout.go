package nbd

// The bytes of the protocol, by the names of doc/proto.md of the NBD project.
// Every integer on the wire is big-endian.

// Handshake.
const (
	magicServer = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454f5054 // "IHAVEOPT"
	magicOld    = 0x00420281861253   // follows NBDMAGIC in the oldstyle handshake
	magicReply  = 0x3e889045565a9    // begins each reply to an option

	greetingBytes    = 18 // NBDMAGIC, IHAVEOPT, flags uint16
	clientFlagsBytes = 4
	optionBytes      = 16 // IHAVEOPT, option uint32, length uint32
	optionReplyBytes = 20 // magic uint64, option uint32, type uint32, length uint32

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optionAbort           = 2
	optionStartTLS        = 5
	optionGo              = 7
	optionStructuredReply = 8
	optionSetMetaContext  = 10

	replyAck         = 1
	replyInfo        = 3
	replyMetaContext = 4

	replyError         = 1 << 31 // set in every reply that refuses
	replyUnsupported   = replyError + 1
	replyPolicy        = replyError + 2
	replyInvalid       = replyError + 3
	replyPlatform      = replyError + 4
	replyTLSRequired   = replyError + 5
	replyUnknown       = replyError + 6
	replyShutdown      = replyError + 7
	replyBlockSize     = replyError + 8
	replyTooBig        = replyError + 9
	replyExtendedReply = replyError + 10

	infoExport    = 0
	infoBlockSize = 3

	infoExportBytes    = 12 // type uint16, size uint64, transmission flags uint16
	infoBlockSizeBytes = 14 // type uint16, minimum uint32, preferred uint32, maximum uint32
	contextIDBytes     = 4  // before the name

	exportHasFlags     = 1 << 0
	exportSendDF       = 1 << 7
	exportCanMultiConn = 1 << 8
)

// Transmission.
const (
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	requestBytes    = 28 // magic uint32, flags uint16, command uint16, cookie uint64, offset uint64, length uint32
	simpleBytes     = 16 // magic uint32, error uint32, cookie uint64
	structuredBytes = 20 // magic uint32, flags uint16, type uint16, cookie uint64, length uint32

	commandRead        = 0
	commandDisconnect  = 2
	commandWhole       = 1 << 2 // NBD_CMD_FLAG_DF, a flag of commandRead
	commandBlockStatus = 7

	chunkDone = 1 << 0 // the only flag of a chunk

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2
	chunkErrorBit    = 1 << 15

	chunkOffsetBytes = 8  // before the bytes of a data chunk
	chunkHoleBytes   = 12 // offset uint64, length uint32
	chunkErrorBytes  = 6  // error uint32, length of the text uint16; then the text
	descriptorBytes  = 8  // length uint32, flags uint32
)

// Flags of contexts.
const (
	stateZero  = 1 << 1 // of base:allocation
	stateDirty = 1 << 0 // of qemu:dirty-bitmap
)

// Limits. They bound what a server can make us hold in memory.
const (
	// maxString is the protocol's limit for names and texts.
	maxString = 4096
	// maxOptionReply leaves room for what stands before a string.
	maxOptionReply = maxString + 64
	// maxInfos bounds the informations about an export.
	maxInfos = 64
	// maxContexts is what one request's bookkeeping can hold.
	maxContexts = 64
	// maxDescriptors is the protocol's limit for one status chunk. QEMU stops at
	// an eighth of it.
	maxDescriptors = 1 << 20
	// maxErrorPayload is a text with its fields around it.
	maxErrorPayload = maxString + 64
	// maxErrorChunks bounds the errors of one request; one is the rule.
	maxErrorChunks = 256
	// maxSpans bounds the pieces of one read that have arrived out of order.
	maxSpans = 1024

	// maxMinBlock is the protocol's limit for the minimum block size.
	maxMinBlock = 64 << 10
	// defaultMaxBlock is the largest read when the server names no limit.
	defaultMaxBlock = 32 << 20
	// maxStatusBytes is the range that one status request asks about. The field has
	// 32 bits; some servers treat it as signed.
	maxStatusBytes = 1 << 30

	// statusScratch is how much of a status chunk is in memory at a time.
	statusScratch = 32 << 10
	// replyBuffer holds headers and small payloads. What is larger goes past it,
	// so a larger one would only mean more bytes that are copied twice.
	replyBuffer = 4 << 10
)
