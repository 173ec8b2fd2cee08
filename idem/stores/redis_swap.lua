-- Writes one record, if the stored one is still the one that its transition was computed from.
--
-- What a record needs is in one slot, so that it is written in one step, on a cluster too. A tag is {namespace/shard}:
--   idem-ledger:$tag:record:$key   hash: claim, version, state (the fence); record, body; counter
--   idem-ledger:$tag:in:$state     sorted set: key -> updated_at, for the states that are listed
--   idem-ledger:$tag:counts        hash: counter -> number of records; a counter is "$state", or "$state:$expiry" for
--                                  records that expire at that instant (Unix milliseconds), and counts until then
--
-- KEYS = {record, counts, in:$old_state, in:$new_state}
-- ARGV = {key, old claim, old version (empty: the key is to be absent), old state, claim, version, state, updated_at,
--         "1" when the state is listed, retention in ms (empty: kept for good), step and offset of the instants at
--         which this shard's records expire, record[, body]}
--
-- Returns nil when it was written; {} when the record is gone; else {state, record, body} of what stood in the way.

local key, old_claim, old_version, old_state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claim, version, state, updated_at = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local listed, retention, step, offset = ARGV[9] == "1", tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local record, body = ARGV[13], ARGV[14]

local stored = redis.call("hmget", KEYS[1], "claim", "version", "state", "counter")
-- A hash without a version is a damaged record, not an absent one.
local absent = not stored[2] and redis.call("exists", KEYS[1]) == 0
local expected = absent
if old_version ~= "" then
    expected = stored[1] == old_claim and stored[2] == old_version and stored[3] == old_state
end
if not expected then
    if absent then
        return {}
    end
    return redis.call("hmget", KEYS[1], "state", "record", "body")
end

local function now_ms()
    local time = redis.call("time")
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- By this server's clock, as it is this server that expires: by a client's wrong one, a record could be gone at once.
-- Rounded up to one of few instants, so that few counters are enough.
local function expiry()
    return string.format("%.0f", (math.floor((now_ms() + retention - offset) / step) + 1) * step + offset)
end

local function drop_passed_counters()
    local now = now_ms()
    for _, name in ipairs(redis.call("hkeys", KEYS[2])) do
        local instant = tonumber(string.match(name, ":(%d+)$"))
        if instant and instant <= now then
            redis.call("hdel", KEYS[2], name)
        end
    end
end

-- What expired records have left on a list: of its oldest two entries, at each one that is added, so that there are never
-- many. The age is by a client's clock, and those records may have had another retention, so that they are looked at too.
-- They have the same tag. While their slot moves, they may be on the other node: that is an error, and the entry stays.
local function drop_left_behind()
    local prefix, oldest = string.sub(KEYS[1], 1, -#key - 1), redis.call("zrange", KEYS[4], 0, 1, "withscores")
    for index = 1, #oldest, 2 do
        local other, changed_at = oldest[index], oldest[index + 1]
        if changed_at * 1000 + retention < now_ms() then
            local found = redis.pcall("hmget", prefix .. other, "state")
            if not found.err and found[1] ~= state then
                redis.call("zrem", KEYS[4], other)
            end
        end
    end
end

local expires_at = retention and expiry()
local counter = expires_at and state .. ":" .. expires_at or state

-- The entry comes before the record: should one of these be refused by an access rule, there is an entry or a count too
-- many, never a record that no list shows. When memory is short, the first one is refused, and nothing is written.
if stored[4] ~= counter then
    if redis.call("hincrby", KEYS[2], counter, 1) == 1 and expires_at then
        drop_passed_counters()
    end
    if stored[4] then
        redis.call("hincrby", KEYS[2], stored[4], -1)
    end
end
if listed then
    redis.call("zadd", KEYS[4], updated_at, key)
end
-- Before the record is open again: an open one that expires would be forgotten.
if not expires_at and not absent then
    redis.call("persist", KEYS[1])
end
redis.call("hset", KEYS[1], "claim", claim, "version", version, "state", state, "record", record, "counter", counter)
if body then
    redis.call("hset", KEYS[1], "body", body)
elseif not absent then
    redis.call("hdel", KEYS[1], "body")
end
if expires_at then
    redis.call("pexpireat", KEYS[1], expires_at)
end
if not absent and old_state ~= state then
    redis.call("zrem", KEYS[3], key)
end
if listed and expires_at then
    drop_left_behind()
end
return nil
