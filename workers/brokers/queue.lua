-- Moves a job between its places, each move in one step, so that no crash can find it in none of them.
--
-- The keys are those of dramatiq's Redis broker, with one of our own in place of its delay queue:
--   $ns:__heartbeats__              sorted set: worker -> when it was last heard of
--   $ns:__acks__.$worker.$queue     set: ids that this worker has fetched and not yet let go of
--   $ns:$queue                      list: ids that are ready
--   $ns:$queue.msgs                 hash: id -> message, for ready and fetched ones
--   $ns:$queue.later                sorted set: id -> when it becomes ready
--   $ns:$queue.later.msgs           hash: id -> message, for delayed ones
--   $ns:$queue.XQ                   sorted set: id -> when it was buried
--   $ns:$queue.XQ.msgs              hash: id -> message, for dead letters
--
-- KEYS = {ns}, ARGV = {command, now in ms, queue, worker, ...}

local command, now, queue, worker = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local ready = KEYS[1] .. ":" .. queue
local messages = ready .. ".msgs"
local later, later_messages = ready .. ".later", ready .. ".later.msgs"
local dead, dead_messages = ready .. ".XQ", ready .. ".XQ.msgs"
local acks = KEYS[1] .. ":__acks__." .. worker .. "." .. queue

local function delay(id, message, at)
    redis.call("zadd", later, at, id)
    redis.call("hset", later_messages, id, message)
end

-- Takes the message off the worker; false when the worker no longer has it, and so may not decide about it.
local function take(id)
    if redis.call("srem", acks, id) == 0 then
        return false
    end
    return redis.call("hdel", messages, id) > 0
end

-- enqueue id message: a new message that is ready.
if command == "enqueue" then
    redis.call("hset", messages, ARGV[5], ARGV[6])
    redis.call("rpush", ready, ARGV[5])

-- delay id message at: a new message that becomes ready later.
elseif command == "delay" then
    delay(ARGV[5], ARGV[6], ARGV[7])

-- retry id message at: the fetched message becomes a delayed one.
elseif command == "retry" then
    if take(ARGV[5]) then
        delay(ARGV[5], ARGV[6], ARGV[7])
    end

-- bury id message: the fetched message becomes a dead letter.
elseif command == "bury" then
    if take(ARGV[5]) then
        redis.call("zadd", dead, now, ARGV[5])
        redis.call("hset", dead_messages, ARGV[5], ARGV[6])
    end

-- fetch count: what is due becomes ready, and up to that many ready ones go to this worker: {id, message, ...}.
elseif command == "fetch" then
    redis.call("zadd", KEYS[1] .. ":__heartbeats__", now, worker)
    for _, id in ipairs(redis.call("zrangebyscore", later, "-inf", now, "LIMIT", 0, 1000)) do
        local message = redis.call("hget", later_messages, id)
        if message then
            redis.call("hset", messages, id, message)
            redis.call("rpush", ready, id)
        end
        redis.call("zrem", later, id)
        redis.call("hdel", later_messages, id)
    end
    local fetched = {}
    while #fetched < 2 * tonumber(ARGV[5]) do
        local id = redis.call("lpop", ready)
        if not id then
            break
        end
        -- Without a message, this is a second copy of an id (a repeated enqueue) whose first copy is done.
        local message = redis.call("hget", messages, id)
        if message then
            redis.call("sadd", acks, id)
            fetched[#fetched + 1] = id
            fetched[#fetched + 1] = message
        end
    end
    return fetched

-- maintain since queue...: what workers hold who were not heard of since then becomes ready again, in all these queues.
elseif command == "maintain" then
    redis.call("zadd", KEYS[1] .. ":__heartbeats__", now, worker)
    for _, gone in ipairs(redis.call("zrangebyscore", KEYS[1] .. ":__heartbeats__", "-inf", ARGV[5])) do
        for index = 6, #ARGV do
            local theirs = KEYS[1] .. ":__acks__." .. gone .. "." .. ARGV[index]
            local name = KEYS[1] .. ":" .. ARGV[index]
            for _, id in ipairs(redis.call("smembers", theirs)) do
                if redis.call("hexists", name .. ".msgs", id) == 1 then
                    redis.call("rpush", name, id)
                end
            end
            redis.call("del", theirs)
        end
        redis.call("zrem", KEYS[1] .. ":__heartbeats__", gone)
    end

-- held: the ids that this worker has fetched and not let go of.
elseif command == "held" then
    return redis.call("smembers", acks)

-- backlog: {ready, ready and fetched, delayed, dead}, all at one instant.
elseif command == "backlog" then
    return {redis.call("llen", ready), redis.call("hlen", messages), redis.call("zcard", later), redis.call("zcard", dead)}
end
