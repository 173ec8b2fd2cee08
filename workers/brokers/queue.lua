-- Moves a job between its places, each move in one step, so that no crash can find it in none of them.
--
-- All keys begin with $ns, which is a hash tag: of a cluster, one node has a whole namespace.
--   $ns:__heartbeats__              sorted set: worker -> when it was last heard of
--   $ns:__acks__.$worker.$queue     set: ids that this worker has fetched and not yet let go of
--   $ns:$queue                      list: ids that are ready
--   $ns:$queue.msgs                 hash: id -> message, for ready and fetched ones
--   $ns:$queue.deaths               hash: id -> how many workers died with it in hand since a word was said of it
--   $ns:$queue.later                sorted set: id -> when it becomes ready
--   $ns:$queue.later.msgs           hash: id -> message, for delayed ones
--   $ns:$queue.XQ                   sorted set: id -> when it was buried
--   $ns:$queue.XQ.msgs              hash: id -> message, for dead letters
--   $ns:$queue.XQ.why               hash: id -> the reason, for dead letters
--   $ns:$queue.wake                 list: empty or one token; an idle worker blocks on it (see `wake`)
--   $ns:$queue.alarm                string: the next due time that some idle worker was told (see `fetch`)
--
-- KEYS = {ns}, ARGV = {command, queue, worker, ...}. Times are the server's, in ms: no worker's clock matters.
--
-- A server that refuses a command in the middle of a script (a user without the right to it) keeps what was done before.
-- So each move adds to the new place first, and takes from the old one last: what can be left behind is a second entry.

-- A message whose worker dies over and over is what kills it, most likely; but workers are killed for other reasons
-- too, and take with them whatever they have in hand. So from the fifth death on, a worker gets only one such message at
-- a time: a further death then speaks against one message and not against its neighbours. Not sooner, as a row of
-- killed workers must not slow down what they had; and ten deaths, five of them alone, are far more than a bad day
-- brings upon one message, while a real killer reaches them after ten visibility timeouts.
local ALONE_AFTER, BURIED_AFTER = 5, 10
-- How many due messages become ready in one step: a step must stay short.
local DUE_AT_ONCE = 1000

local command, queue, worker = ARGV[1], ARGV[2], ARGV[3]
local heartbeats = KEYS[1] .. ":__heartbeats__"
local ready = KEYS[1] .. ":" .. queue
local messages, deaths = ready .. ".msgs", ready .. ".deaths"
local later, later_messages = ready .. ".later", ready .. ".later.msgs"
local dead, dead_messages, dead_reasons = ready .. ".XQ", ready .. ".XQ.msgs", ready .. ".XQ.why"
local alarm = ready .. ".alarm"
local acks = KEYS[1] .. ":__acks__." .. worker .. "." .. queue

local function clock()
    local time = redis.call("time")
    return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Wakes one idle worker. If none waits at this instant, the token stays for the next that would: a job that comes
-- between a worker's look and its wait is not missed. Whoever leaves something behind wakes the next one in turn, so
-- that one token is enough, and a thousand idle workers do not run for one job.
local function wake(name)
    if redis.call("llen", name .. ".wake") == 0 then
        redis.call("rpush", name .. ".wake", "1")
    end
end

-- A server that is out of memory refuses a script whose first write adds something, and no other. What empties the
-- queue must work there: such a command begins by taking nothing away.
local function insist()
    redis.call("srem", acks, "")
end

local function heard()
    insist()
    redis.call("zadd", heartbeats, clock(), worker)
end

local function add_ready(name, id)
    redis.call("rpush", name, id)
    wake(name)
end

local function delay(id, message, ms)
    redis.call("zadd", later, clock() + tonumber(ms), id)
    redis.call("hset", later_messages, id, message)
    -- Nobody knows of this due time yet if it is the first.
    if redis.call("zrange", later, 0, 0)[1] == id then
        wake(ready)
    end
end

local function bury(name, id, message, reason)
    redis.call("zadd", name .. ".XQ", clock(), id)
    redis.call("hset", name .. ".XQ.msgs", id, message)
    redis.call("hset", name .. ".XQ.why", id, reason)
end

-- Only the worker that has a message may decide about it.
local function holds(id)
    return redis.call("sismember", acks, id) == 1 and redis.call("hexists", messages, id) == 1
end

local function let_go(id)
    -- Others may have waited for this worker to be done with it.
    if redis.call("hdel", deaths, id) == 1 and redis.call("llen", ready) > 0 then
        wake(ready)
    end
    redis.call("hdel", messages, id)
    redis.call("srem", acks, id)
end

local function suspect(id)
    return tonumber(redis.call("hget", deaths, id) or 0) >= ALONE_AFTER
end

local function holds_suspect()
    for _, id in ipairs(redis.call("smembers", acks)) do
        if suspect(id) then
            return true
        end
    end
    return false
end

-- What is due becomes ready.
local function call_due()
    for _, id in ipairs(redis.call("zrangebyscore", later, "-inf", clock(), "LIMIT", 0, DUE_AT_ONCE)) do
        local message = redis.call("hget", later_messages, id)
        if message then
            redis.call("hset", messages, id, message)
            redis.call("rpush", ready, id)
        end
        redis.call("zrem", later, id)
        redis.call("hdel", later_messages, id)
    end
end

-- In how many ms the next delayed message is due, if this worker is to wait for it; -1 if not. One worker waits: with
-- many idle ones and many delayed messages, all of them would run all the time.
local function next_due()
    local first = redis.call("zrange", later, 0, 0, "WITHSCORES")[2]
    if not first then
        return -1
    end
    local told = tonumber(redis.call("get", alarm) or "inf")
    if told <= tonumber(first) then
        return -1
    end
    local left = math.max(1, math.ceil(tonumber(first) - clock()))
    redis.call("set", alarm, first, "PX", left)
    return left
end

-- Up to `room` ready messages for this worker: {id, message, ...}.
local function pop(room)
    local fetched = {}
    local passed, left = 0, redis.call("llen", ready)
    local suspects = left > 0 and redis.call("hlen", deaths) > 0
    local held = suspects and holds_suspect()
    while #fetched < 2 * room and left > 0 do
        left = left - 1
        local id = redis.call("lindex", ready, 0)
        -- Without a message, this is a second copy of an id (a repeated enqueue) whose first copy is done.
        local message = redis.call("hget", messages, id)
        local alone = message and suspects and suspect(id)
        if alone and held then
            -- For another worker, or for later: to the end of the list.
            redis.call("rpush", ready, id)
            passed = passed + 1
        elseif message then
            held = held or alone
            redis.call("sadd", acks, id)
            fetched[#fetched + 1] = id
            fetched[#fetched + 1] = message
        end
        redis.call("lpop", ready)
    end
    if redis.call("llen", ready) > passed then
        wake(ready)
    end
    return fetched
end

-- A worker is gone: what it had in hand becomes ready again, or is buried.
local function inherit(name, gone)
    local theirs = KEYS[1] .. ":__acks__." .. gone .. "." .. name
    local base = KEYS[1] .. ":" .. name
    for _, id in ipairs(redis.call("smembers", theirs)) do
        local message = redis.call("hget", base .. ".msgs", id)
        if message and redis.call("hincrby", base .. ".deaths", id, 1) >= BURIED_AFTER then
            bury(base, id, message, BURIED_AFTER .. " workers died while they had it, and none said a word of it")
            redis.call("hdel", base .. ".msgs", id)
            redis.call("hdel", base .. ".deaths", id)
        elseif message then
            add_ready(base, id)
        end
    end
    redis.call("del", theirs)
end

-- enqueue id message: a new message that is ready.
if command == "enqueue" then
    redis.call("hset", messages, ARGV[4], ARGV[5])
    add_ready(ready, ARGV[4])

-- delay id message ms: a new message that becomes ready later.
elseif command == "delay" then
    delay(ARGV[4], ARGV[5], ARGV[6])

-- ack id: the fetched message is done with.
elseif command == "ack" then
    if holds(ARGV[4]) then
        let_go(ARGV[4])
    end

-- retry id message ms: the fetched message becomes a delayed one.
elseif command == "retry" then
    if holds(ARGV[4]) then
        insist()
        delay(ARGV[4], ARGV[5], ARGV[6])
        let_go(ARGV[4])
    end

-- bury id message reason: the fetched message becomes a dead letter.
elseif command == "bury" then
    if holds(ARGV[4]) then
        insist()
        bury(ready, ARGV[4], ARGV[5], ARGV[6])
        let_go(ARGV[4])
    end

-- requeue id...: fetched messages that were not begun are ready again, and somebody else hears of what is ready.
elseif command == "requeue" then
    insist()
    for index = 4, #ARGV do
        if holds(ARGV[index]) then
            redis.call("rpush", ready, ARGV[index])
        end
        redis.call("srem", acks, ARGV[index])
    end
    if redis.call("llen", ready) > 0 then
        wake(ready)
    end

-- fetch room: {ms until this worker must look again or -1, id, message, id, message, ...}; at the most `room` of them.
elseif command == "fetch" then
    heard()
    call_due()
    local fetched = pop(tonumber(ARGV[4]))
    table.insert(fetched, 1, next_due())
    return fetched

-- maintain visibility_ms queue...: what workers hold who were not heard of for so long goes to others, in these queues.
elseif command == "maintain" then
    heard()
    for _, gone in ipairs(redis.call("zrangebyscore", heartbeats, "-inf", clock() - tonumber(ARGV[4]))) do
        for index = 5, #ARGV do
            inherit(ARGV[index], gone)
        end
        redis.call("zrem", heartbeats, gone)
    end

-- held: the ids that this worker has fetched and not let go of.
elseif command == "held" then
    return redis.call("smembers", acks)

-- backlog: {ready, ready and fetched, delayed, dead}, all at one instant.
elseif command == "backlog" then
    return {redis.call("llen", ready), redis.call("hlen", messages), redis.call("zcard", later), redis.call("zcard", dead)}

-- dead: the ids of the dead letters, the one longest buried first.
elseif command == "dead" then
    return redis.call("zrange", dead, 0, -1)

-- letters id...: {id, when it was buried, reason, message, ...} of those that are still there.
elseif command == "letters" then
    local letters = {}
    for index = 4, #ARGV do
        local id, at = ARGV[index], redis.call("zscore", dead, ARGV[index])
        if at then
            for _, part in ipairs({id, at, redis.call("hget", dead_reasons, id) or "", redis.call("hget", dead_messages, id) or ""}) do
                letters[#letters + 1] = part
            end
        end
    end
    return letters

-- revive id message: the dead letter becomes ready, as `message`; 0 when it is no dead letter any more.
-- drop id: the dead letter is no more.
elseif command == "revive" or command == "drop" then
    if not redis.call("zscore", dead, ARGV[4]) then
        return 0
    end
    if command == "revive" then
        insist()
        redis.call("hset", messages, ARGV[4], ARGV[5])
        add_ready(ready, ARGV[4])
    end
    redis.call("zrem", dead, ARGV[4])
    redis.call("hdel", dead_messages, ARGV[4])
    redis.call("hdel", dead_reasons, ARGV[4])
    return 1

-- forbidden: the first command that this user may not run; nothing is run. Servers before Redis 7 cannot say.
elseif command == "forbidden" and redis.acl_check_cmd then
    for _, call in ipairs({
        {"blpop", ready, "1"}, {"del", acks}, {"evalsha", "0", "1", KEYS[1]}, {"get", alarm}, {"hdel", deaths, "f"},
        {"hexists", messages, "f"}, {"hget", messages, "f"}, {"hincrby", deaths, "f", "1"}, {"hlen", messages},
        {"hset", messages, "f", "v"}, {"lindex", ready, "0"}, {"llen", ready}, {"lpop", ready}, {"rpush", ready, "v"},
        {"sadd", acks, "m"}, {"set", alarm, "1", "px", "1"}, {"sismember", acks, "m"}, {"smembers", acks},
        {"srem", acks, "m"}, {"time"}, {"zadd", later, "0", "m"}, {"zcard", later}, {"zrange", later, "0", "1"},
        {"zrangebyscore", later, "0", "1"}, {"zrem", later, "m"}, {"zscore", dead, "m"},
    }) do
        if not redis.acl_check_cmd(unpack(call)) then
            return call[1]
        end
    end
end
